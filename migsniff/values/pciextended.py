"""Registers of the extended capabilities of PCI Express, which stand behind offset 0x100."""

from collections.abc import Mapping
from typing import Final

from migsniff.values.image import Part
from migsniff.values.pciregisters import Named, Register, bits
from migsniff.values.tables import pci

UNCORRECTABLE: Final = bits(
    data_link_protocol=pci.PCI_ERR_UNC_DLP,
    surprise_down=pci.PCI_ERR_UNC_SURPDN,
    poisoned_TLP=pci.PCI_ERR_UNC_POISON_TLP,
    flow_control_protocol=pci.PCI_ERR_UNC_FCP,
    completion_timeout=pci.PCI_ERR_UNC_COMP_TIME,
    completer_abort=pci.PCI_ERR_UNC_COMP_ABORT,
    unexpected_completion=pci.PCI_ERR_UNC_UNX_COMP,
    receiver_overflow=pci.PCI_ERR_UNC_RX_OVER,
    malformed_TLP=pci.PCI_ERR_UNC_MALF_TLP,
    ECRC=pci.PCI_ERR_UNC_ECRC,
    unsupported_request=pci.PCI_ERR_UNC_UNSUP,
    ACS_violation=pci.PCI_ERR_UNC_ACSV,
    uncorrectable_internal_error=pci.PCI_ERR_UNC_INTN,
    MC_blocked_TLP=pci.PCI_ERR_UNC_MCBTLP,
    AtomicOp_egress_blocked=pci.PCI_ERR_UNC_ATOMEG,
    TLP_prefix_blocked=pci.PCI_ERR_UNC_TLPPRE,
)
CORRECTABLE: Final = bits(
    receiver_error=pci.PCI_ERR_COR_RCVR,
    bad_TLP=pci.PCI_ERR_COR_BAD_TLP,
    bad_DLLP=pci.PCI_ERR_COR_BAD_DLLP,
    replay_number_rollover=pci.PCI_ERR_COR_REP_ROLL,
    replay_timer_timeout=pci.PCI_ERR_COR_REP_TIMER,
    advisory_non_fatal_error=pci.PCI_ERR_COR_ADV_NFAT,
    corrected_internal_error=pci.PCI_ERR_COR_INTERNAL,
    header_log_overflow=pci.PCI_ERR_COR_LOG_OVER,
)
ERROR_REPORTING: Final = (
    Register("uncorrectable_error_status", pci.PCI_ERR_UNCOR_STATUS, 4, UNCORRECTABLE),
    Register("uncorrectable_error_mask", pci.PCI_ERR_UNCOR_MASK, 4, UNCORRECTABLE),
    Register("uncorrectable_error_severity", pci.PCI_ERR_UNCOR_SEVER, 4, UNCORRECTABLE),
    Register("correctable_error_status", pci.PCI_ERR_COR_STATUS, 4, CORRECTABLE),
    Register("correctable_error_mask", pci.PCI_ERR_COR_MASK, 4, CORRECTABLE),
    Register(
        "advanced_error_capabilities_and_control",
        pci.PCI_ERR_CAP,
        4,
        (
            Part("first error pointer", 0x1F),
            *bits(
                ECRC_generation_capable=pci.PCI_ERR_CAP_ECRC_GENC,
                ECRC_generation_enabled=pci.PCI_ERR_CAP_ECRC_GENE,
                ECRC_check_capable=pci.PCI_ERR_CAP_ECRC_CHKC,
                ECRC_check_enabled=pci.PCI_ERR_CAP_ECRC_CHKE,
                TLP_prefix_log_present=pci.PCI_ERR_CAP_PREFIX_LOG_PRESENT,
            ),
        ),
    ),
    *(Register("header_log", pci.PCI_ERR_HEADER_LOG + 4 * word, 4, index=word) for word in range(4)),
)
ROOT_ERRORS: Final = (
    Register(
        "root_error_command",
        pci.PCI_ERR_ROOT_COMMAND,
        4,
        bits(
            reports_correctable_errors=pci.PCI_ERR_ROOT_CMD_COR_EN,
            reports_non_fatal_errors=pci.PCI_ERR_ROOT_CMD_NONFATAL_EN,
            reports_fatal_errors=pci.PCI_ERR_ROOT_CMD_FATAL_EN,
        ),
    ),
    Register(
        "root_error_status",
        pci.PCI_ERR_ROOT_STATUS,
        4,
        bits(
            correctable_error_received=pci.PCI_ERR_ROOT_COR_RCV,
            several_correctable_errors=pci.PCI_ERR_ROOT_MULTI_COR_RCV,
            uncorrectable_error_received=pci.PCI_ERR_ROOT_UNCOR_RCV,
            several_uncorrectable_errors=pci.PCI_ERR_ROOT_MULTI_UNCOR_RCV,
            first_was_fatal=pci.PCI_ERR_ROOT_FIRST_FATAL,
            non_fatal_error_received=pci.PCI_ERR_ROOT_NONFATAL_RCV,
            fatal_error_received=pci.PCI_ERR_ROOT_FATAL_RCV,
            interrupt_message=pci.PCI_ERR_ROOT_AER_IRQ,
        ),
    ),
    Register("error_source", pci.PCI_ERR_ROOT_ERR_SRC, 4),
)
ACCESS_CONTROL: Final = bits(
    source_validation=pci.PCI_ACS_SV,
    translation_blocking=pci.PCI_ACS_TB,
    P2P_request_redirect=pci.PCI_ACS_RR,
    P2P_completion_redirect=pci.PCI_ACS_CR,
    upstream_forwarding=pci.PCI_ACS_UF,
    P2P_egress_control=pci.PCI_ACS_EC,
    direct_translated_P2P=pci.PCI_ACS_DT,
)
SRIOV: Final = (
    Register(
        "capabilities",
        pci.PCI_SRIOV_CAP,
        4,
        (*bits(VF_migration=pci.PCI_SRIOV_CAP_VFM), Part("interrupt message", 0xFFE00000)),
    ),
    Register(
        "control",
        pci.PCI_SRIOV_CTRL,
        2,
        bits(
            VFs_enabled=pci.PCI_SRIOV_CTRL_VFE,
            VF_migration=pci.PCI_SRIOV_CTRL_VFM,
            VF_migration_interrupt=pci.PCI_SRIOV_CTRL_INTR,
            VF_memory_space=pci.PCI_SRIOV_CTRL_MSE,
            ARI_capable_hierarchy=pci.PCI_SRIOV_CTRL_ARI,
        ),
    ),
    Register("status", pci.PCI_SRIOV_STATUS, 2, bits(VF_migration=pci.PCI_SRIOV_STATUS_VFM)),
    Register("initial_vfs", pci.PCI_SRIOV_INITIAL_VF, 2),
    Register("total_vfs", pci.PCI_SRIOV_TOTAL_VF, 2),
    Register("number_of_vfs", pci.PCI_SRIOV_NUM_VF, 2),
    Register("function_dependency_link", pci.PCI_SRIOV_FUNC_LINK, 2),
    Register("first_vf_offset", pci.PCI_SRIOV_VF_OFFSET, 2),
    Register("vf_stride", pci.PCI_SRIOV_VF_STRIDE, 2),
    Register("vf_device_id", pci.PCI_SRIOV_VF_DID, 2),
    Register("supported_page_sizes", pci.PCI_SRIOV_SUP_PGSIZE, 4),
    Register("system_page_size", pci.PCI_SRIOV_SYS_PGSIZE, 4),
    *(Register("vf_bar", pci.PCI_SRIOV_BAR + 4 * bar, 4, index=bar) for bar in range(pci.PCI_SRIOV_NUM_BARS)),
    Register("vf_migration_state_array", pci.PCI_SRIOV_VFM, 4),
)
NANOSECONDS: Final = (1, 32, 1024, 32768, 1048576, 33554432)


def latency(value: int) -> str:
    """A latency of LTR: a number and how often to multiply it by 32 ns."""
    scale = (value & pci.PCI_LTR_SCALE_MASK) >> pci.PCI_LTR_SCALE_SHIFT
    return f"{(value & pci.PCI_LTR_VALUE_MASK) * NANOSECONDS[scale]} ns" if scale < len(NANOSECONDS) else ""


def error_reporting(port: int | None) -> tuple[Register, ...]:
    """Advanced error reporting of a port of that type: who gathers errors has registers of its own."""
    if port in (pci.PCI_EXP_TYPE_ROOT_PORT, pci.PCI_EXP_TYPE_RC_EC):
        return (*ERROR_REPORTING, *ROOT_ERRORS)
    return ERROR_REPORTING


EXTENDED: Final[Mapping[int, Named]] = {
    pci.PCI_EXT_CAP_ID_ERR: Named("error_reporting", "advanced error reporting (AER)", ERROR_REPORTING),
    pci.PCI_EXT_CAP_ID_VC: Named(
        "virtual_channel",
        "virtual channel",
        (
            Register("port_capability_1", pci.PCI_VC_PORT_CAP1, 4),
            Register("port_capability_2", pci.PCI_VC_PORT_CAP2, 4),
            Register("port_control", pci.PCI_VC_PORT_CTRL, 2),
            Register("port_status", pci.PCI_VC_PORT_STATUS, 2),
        ),
    ),
    pci.PCI_EXT_CAP_ID_DSN: Named(
        "serial_number", "device serial number", (Register("serial_number", pci.PCI_CAP_SIZEOF, 8),)
    ),
    pci.PCI_EXT_CAP_ID_PWR: Named("power_budgeting", "power budgeting"),
    pci.PCI_EXT_CAP_ID_RCLD: Named("root_complex_link", "root complex link declaration"),
    pci.PCI_EXT_CAP_ID_RCILC: Named("root_complex_internal_link", "root complex internal link control"),
    pci.PCI_EXT_CAP_ID_RCEC: Named("root_complex_event_collector", "root complex event collector"),
    pci.PCI_EXT_CAP_ID_MFVC: Named("multi_function_virtual_channel", "multi-function virtual channel"),
    pci.PCI_EXT_CAP_ID_VC9: Named("virtual_channel_9", "virtual channel"),
    pci.PCI_EXT_CAP_ID_RCRB: Named("root_complex_register_block", "root complex register block"),
    pci.PCI_EXT_CAP_ID_VNDR: Named(
        "vendor_specific",
        "vendor-specific",
        (
            Register(
                "vendor_specific_header",
                pci.PCI_VNDR_HEADER,
                4,
                (
                    Part("id", 0xFFFF, lambda value: f"id {value:#x}"),
                    Part("revision", 0xF0000),
                    Part("length", 0xFFF00000),
                ),
            ),
        ),
    ),
    pci.PCI_EXT_CAP_ID_CAC: Named("configuration_access", "configuration access correlation"),
    pci.PCI_EXT_CAP_ID_ACS: Named(
        "access_control",
        "access control services (ACS)",
        (
            Register(
                "capabilities", pci.PCI_ACS_CAP, 2, (*ACCESS_CONTROL, Part("egress vector size", 0xFF00))
            ),
            Register("control", pci.PCI_ACS_CTRL, 2, ACCESS_CONTROL),
        ),
    ),
    pci.PCI_EXT_CAP_ID_ARI: Named(
        "alternative_routing",
        "alternative routing-ID (ARI)",
        (
            Register(
                "capabilities",
                pci.PCI_ARI_CAP,
                2,
                (
                    *bits(MFVC_function_groups=pci.PCI_ARI_CAP_MFVC, ACS_function_groups=pci.PCI_ARI_CAP_ACS),
                    Part("next function", 0xFF00),
                ),
            ),
            Register(
                "control",
                pci.PCI_ARI_CTRL,
                2,
                (
                    *bits(
                        MFVC_function_groups=pci.PCI_ARI_CTRL_MFVC, ACS_function_groups=pci.PCI_ARI_CTRL_ACS
                    ),
                    Part("function group", 0x70),
                ),
            ),
        ),
    ),
    pci.PCI_EXT_CAP_ID_ATS: Named(
        "address_translation",
        "address translation services (ATS)",
        (
            Register(
                "capabilities",
                pci.PCI_ATS_CAP,
                2,
                (
                    Part("invalidate queue depth", 0x1F),
                    Part("page aligned request", pci.PCI_ATS_CAP_PAGE_ALIGNED),
                ),
            ),
            Register(
                "control",
                pci.PCI_ATS_CTRL,
                2,
                (Part("smallest translation unit", 0x1F), Part("enabled", pci.PCI_ATS_CTRL_ENABLE)),
            ),
        ),
    ),
    pci.PCI_EXT_CAP_ID_SRIOV: Named("sriov", "SR-IOV", SRIOV),
    pci.PCI_EXT_CAP_ID_MRIOV: Named("mriov", "MR-IOV"),
    pci.PCI_EXT_CAP_ID_MCAST: Named("multicast", "multicast"),
    pci.PCI_EXT_CAP_ID_PRI: Named(
        "page_request",
        "page request interface (PRI)",
        (
            Register(
                "control",
                pci.PCI_PRI_CTRL,
                2,
                bits(enabled=pci.PCI_PRI_CTRL_ENABLE, reset=pci.PCI_PRI_CTRL_RESET),
            ),
            Register(
                "status",
                pci.PCI_PRI_STATUS,
                2,
                bits(
                    response_failure=pci.PCI_PRI_STATUS_RF,
                    unexpected_group_index=pci.PCI_PRI_STATUS_UPRGI,
                    stopped=pci.PCI_PRI_STATUS_STOPPED,
                    PASID_required=pci.PCI_PRI_STATUS_PASID,
                ),
            ),
            Register("outstanding_requests_capacity", pci.PCI_PRI_MAX_REQ, 4),
            Register("outstanding_requests_allocation", pci.PCI_PRI_ALLOC_REQ, 4),
        ),
    ),
    pci.PCI_EXT_CAP_ID_REBAR: Named("resizable_bar", "resizable BAR"),
    pci.PCI_EXT_CAP_ID_DPA: Named("dynamic_power_allocation", "dynamic power allocation"),
    pci.PCI_EXT_CAP_ID_TPH: Named("tph_requester", "TPH requester"),
    pci.PCI_EXT_CAP_ID_LTR: Named(
        "latency_tolerance",
        "latency tolerance reporting (LTR)",
        (
            Register("max_snoop_latency", pci.PCI_LTR_MAX_SNOOP_LAT, 2, words=latency),
            Register("max_no_snoop_latency", pci.PCI_LTR_MAX_NOSNOOP_LAT, 2, words=latency),
        ),
    ),
    pci.PCI_EXT_CAP_ID_SECPCI: Named("secondary_express", "secondary PCI Express"),
    pci.PCI_EXT_CAP_ID_PMUX: Named("protocol_multiplexing", "protocol multiplexing"),
    pci.PCI_EXT_CAP_ID_PASID: Named(
        "pasid",
        "process address space ID (PASID)",
        (
            Register(
                "capabilities",
                pci.PCI_PASID_CAP,
                2,
                bits(
                    execute_permission=pci.PCI_PASID_CAP_EXEC,
                    privileged_mode=pci.PCI_PASID_CAP_PRIV,
                    width=pci.PCI_PASID_CAP_WIDTH,
                ),
            ),
            Register(
                "control",
                pci.PCI_PASID_CTRL,
                2,
                bits(
                    enabled=pci.PCI_PASID_CTRL_ENABLE,
                    execute_permission=pci.PCI_PASID_CTRL_EXEC,
                    privileged_mode=pci.PCI_PASID_CTRL_PRIV,
                ),
            ),
        ),
    ),
    pci.PCI_EXT_CAP_ID_DPC: Named("downstream_port_containment", "downstream port containment (DPC)"),
    pci.PCI_EXT_CAP_ID_L1SS: Named("l1_substates", "L1 PM substates"),
    pci.PCI_EXT_CAP_ID_PTM: Named("precision_time", "precision time measurement (PTM)"),
    pci.PCI_EXT_CAP_ID_DVSEC: Named(
        "designated_vendor_specific",
        "designated vendor-specific (DVSEC)",
        (
            Register(
                "header_1",
                pci.PCI_DVSEC_HEADER1,
                4,
                (
                    Part("vendor", 0xFFFF, lambda value: f"vendor {value:04x}"),
                    Part("revision", 0xF0000),
                    Part("length", 0xFFF00000),
                ),
            ),
            Register("header_2", pci.PCI_DVSEC_HEADER2, 2),
        ),
    ),
    pci.PCI_EXT_CAP_ID_VF_REBAR: Named("vf_resizable_bar", "VF resizable BAR"),
    pci.PCI_EXT_CAP_ID_DLF: Named("data_link_feature", "data link feature"),
    pci.PCI_EXT_CAP_ID_PL_16GT: Named("physical_layer_16gt", "physical layer 16 GT/s"),
    pci.PCI_EXT_CAP_ID_NPEM: Named("enclosure_management", "native PCIe enclosure management"),
    pci.PCI_EXT_CAP_ID_PL_32GT: Named("physical_layer_32gt", "physical layer 32 GT/s"),
    pci.PCI_EXT_CAP_ID_DOE: Named("data_object_exchange", "data object exchange (DOE)"),
    pci.PCI_EXT_CAP_ID_DEV3: Named("device_3", "device 3"),
    pci.PCI_EXT_CAP_ID_IDE: Named("integrity_and_encryption", "integrity and data encryption (IDE)"),
    pci.PCI_EXT_CAP_ID_PL_64GT: Named("physical_layer_64gt", "physical layer 64 GT/s"),
}
