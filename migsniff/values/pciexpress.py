"""Registers of PCI Express: of its capability, and of the extended capabilities behind offset 0x100."""

from typing import Final

from migsniff.values.image import Part
from migsniff.values.pciregisters import Register, bits, bus_address, bytes_of
from migsniff.values.tables import pci

# ---------------------------------------------------------------- the capability

PORTS: Final = {
    pci.PCI_EXP_TYPE_ENDPOINT: "endpoint",
    pci.PCI_EXP_TYPE_LEG_END: "legacy endpoint",
    pci.PCI_EXP_TYPE_ROOT_PORT: "root port",
    pci.PCI_EXP_TYPE_UPSTREAM: "upstream port",
    pci.PCI_EXP_TYPE_DOWNSTREAM: "downstream port",
    pci.PCI_EXP_TYPE_PCI_BRIDGE: "bridge to PCI",
    pci.PCI_EXP_TYPE_PCIE_BRIDGE: "bridge from PCI",
    pci.PCI_EXP_TYPE_RC_END: "root complex integrated endpoint",
    pci.PCI_EXP_TYPE_RC_EC: "root complex event collector",
}
SPEEDS: Final = {
    0: "",
    pci.PCI_EXP_LNKCAP_SLS_2_5GB: "2.5 GT/s",
    pci.PCI_EXP_LNKCAP_SLS_5_0GB: "5 GT/s",
    pci.PCI_EXP_LNKCAP_SLS_8_0GB: "8 GT/s",
    pci.PCI_EXP_LNKCAP_SLS_16_0GB: "16 GT/s",
    pci.PCI_EXP_LNKCAP_SLS_32_0GB: "32 GT/s",
    pci.PCI_EXP_LNKCAP_SLS_64_0GB: "64 GT/s",
}
ASPM: Final = {0: "", 1: "ASPM L0s", 2: "ASPM L1", 3: "ASPM L0s and L1"}
INDICATOR: Final = {0: "", 1: "on", 2: "blinking", 3: "off"}


def _indicator(which: str, mask: int) -> Part:
    return Part(
        f"{which} indicator control",
        mask,
        lambda value: (value and f"{which} indicator {INDICATOR[value]}") or "",
    )


def _width(mask: int) -> Part:
    return Part("link width", mask, lambda lanes: f"x{lanes}" if lanes else "")


EXPRESS_FLAGS: Final = Register(
    "express_capabilities",
    pci.PCI_EXP_FLAGS,
    2,
    (
        Part("version", pci.PCI_EXP_FLAGS_VERS, lambda version: f"version {version}"),
        Part("port type", pci.PCI_EXP_FLAGS_TYPE, PORTS),
        *bits(
            slot=pci.PCI_EXP_FLAGS_SLOT,
            interrupt_message=pci.PCI_EXP_FLAGS_IRQ,
            flit_mode=pci.PCI_EXP_FLAGS_FLIT,
        ),
    ),
)
EXPRESS_DEVICE: Final = (
    Register(
        "device_capabilities",
        pci.PCI_EXP_DEVCAP,
        4,
        (
            Part("max payload", pci.PCI_EXP_DEVCAP_PAYLOAD, lambda log: f"max payload {bytes_of(log)}"),
            *bits(
                phantom_functions=pci.PCI_EXP_DEVCAP_PHANTOM,
                extended_tags=pci.PCI_EXP_DEVCAP_EXT_TAG,
                L0s_latency=pci.PCI_EXP_DEVCAP_L0S,
                L1_latency=pci.PCI_EXP_DEVCAP_L1,
                attention_button=pci.PCI_EXP_DEVCAP_ATN_BUT,
                attention_indicator=pci.PCI_EXP_DEVCAP_ATN_IND,
                power_indicator=pci.PCI_EXP_DEVCAP_PWR_IND,
                role_based_error_reporting=pci.PCI_EXP_DEVCAP_RBER,
                slot_power_limit=pci.PCI_EXP_DEVCAP_PWR_VAL,
                slot_power_limit_scale=pci.PCI_EXP_DEVCAP_PWR_SCL,
                function_level_reset=pci.PCI_EXP_DEVCAP_FLR,
            ),
        ),
    ),
    Register(
        "device_control",
        pci.PCI_EXP_DEVCTL,
        2,
        (
            *bits(
                reports_correctable_errors=pci.PCI_EXP_DEVCTL_CERE,
                reports_non_fatal_errors=pci.PCI_EXP_DEVCTL_NFERE,
                reports_fatal_errors=pci.PCI_EXP_DEVCTL_FERE,
                reports_unsupported_requests=pci.PCI_EXP_DEVCTL_URRE,
                relaxed_ordering=pci.PCI_EXP_DEVCTL_RELAX_EN,
            ),
            Part("max payload", pci.PCI_EXP_DEVCTL_PAYLOAD, lambda log: f"max payload {bytes_of(log)}"),
            *bits(
                extended_tags=pci.PCI_EXP_DEVCTL_EXT_TAG,
                phantom_functions=pci.PCI_EXP_DEVCTL_PHANTOM,
                auxiliary_power=pci.PCI_EXP_DEVCTL_AUX_PME,
                no_snoop=pci.PCI_EXP_DEVCTL_NOSNOOP_EN,
            ),
            Part(
                "max read request", pci.PCI_EXP_DEVCTL_READRQ, lambda log: f"max read request {bytes_of(log)}"
            ),
            Part("function level reset", pci.PCI_EXP_DEVCTL_BCR_FLR),
        ),
    ),
    Register(
        "device_status",
        pci.PCI_EXP_DEVSTA,
        2,
        bits(
            correctable_error_detected=pci.PCI_EXP_DEVSTA_CED,
            non_fatal_error_detected=pci.PCI_EXP_DEVSTA_NFED,
            fatal_error_detected=pci.PCI_EXP_DEVSTA_FED,
            unsupported_request_detected=pci.PCI_EXP_DEVSTA_URD,
            auxiliary_power=pci.PCI_EXP_DEVSTA_AUXPD,
            transactions_pending=pci.PCI_EXP_DEVSTA_TRPND,
        ),
    ),
)
EXPRESS_LINK: Final = (
    Register(
        "link_capabilities",
        pci.PCI_EXP_LNKCAP,
        4,
        (
            Part("max link speed", pci.PCI_EXP_LNKCAP_SLS, SPEEDS),
            _width(pci.PCI_EXP_LNKCAP_MLW),
            Part("ASPM", pci.PCI_EXP_LNKCAP_ASPMS, ASPM),
            *bits(
                L0s_exit_latency=pci.PCI_EXP_LNKCAP_L0SEL,
                L1_exit_latency=pci.PCI_EXP_LNKCAP_L1EL,
                clock_power_management=pci.PCI_EXP_LNKCAP_CLKPM,
                surprise_down_reporting=pci.PCI_EXP_LNKCAP_SDERC,
                link_active_reporting=pci.PCI_EXP_LNKCAP_DLLLARC,
                bandwidth_notification=pci.PCI_EXP_LNKCAP_LBNC,
                port=pci.PCI_EXP_LNKCAP_PN,
            ),
        ),
    ),
    Register(
        "link_control",
        pci.PCI_EXP_LNKCTL,
        2,
        (
            Part("ASPM", pci.PCI_EXP_LNKCTL_ASPMC, ASPM),
            *bits(
                read_completion_boundary=pci.PCI_EXP_LNKCTL_RCB,
                link_disable=pci.PCI_EXP_LNKCTL_LD,
                retrain_link=pci.PCI_EXP_LNKCTL_RL,
                common_clock=pci.PCI_EXP_LNKCTL_CCC,
                extended_synch=pci.PCI_EXP_LNKCTL_ES,
                clock_power_management=pci.PCI_EXP_LNKCTL_CLKREQ_EN,
                autonomous_width_disable=pci.PCI_EXP_LNKCTL_HAWD,
                bandwidth_management_interrupt=pci.PCI_EXP_LNKCTL_LBMIE,
                autonomous_bandwidth_interrupt=pci.PCI_EXP_LNKCTL_LABIE,
            ),
        ),
    ),
    Register(
        "link_status",
        pci.PCI_EXP_LNKSTA,
        2,
        (
            Part("link speed", pci.PCI_EXP_LNKSTA_CLS, SPEEDS),
            _width(pci.PCI_EXP_LNKSTA_NLW),
            *bits(
                link_training=pci.PCI_EXP_LNKSTA_LT,
                slot_clock=pci.PCI_EXP_LNKSTA_SLC,
                link_active=pci.PCI_EXP_LNKSTA_DLLLA,
                bandwidth_management_status=pci.PCI_EXP_LNKSTA_LBMS,
                autonomous_bandwidth_status=pci.PCI_EXP_LNKSTA_LABS,
            ),
        ),
    ),
)
EXPRESS_SLOT: Final = (
    Register(
        "slot_capabilities",
        pci.PCI_EXP_SLTCAP,
        4,
        bits(
            attention_button=pci.PCI_EXP_SLTCAP_ABP,
            power_controller=pci.PCI_EXP_SLTCAP_PCP,
            MRL_sensor=pci.PCI_EXP_SLTCAP_MRLSP,
            attention_indicator=pci.PCI_EXP_SLTCAP_AIP,
            power_indicator=pci.PCI_EXP_SLTCAP_PIP,
            hot_plug_surprise=pci.PCI_EXP_SLTCAP_HPS,
            hot_plug_capable=pci.PCI_EXP_SLTCAP_HPC,
            slot_power_limit=pci.PCI_EXP_SLTCAP_SPLV,
            slot_power_limit_scale=pci.PCI_EXP_SLTCAP_SPLS,
            electromechanical_interlock=pci.PCI_EXP_SLTCAP_EIP,
            no_command_completed=pci.PCI_EXP_SLTCAP_NCCS,
            physical_slot=pci.PCI_EXP_SLTCAP_PSN,
        ),
    ),
    Register(
        "slot_control",
        pci.PCI_EXP_SLTCTL,
        2,
        (
            *bits(
                attention_button_enabled=pci.PCI_EXP_SLTCTL_ABPE,
                power_fault_enabled=pci.PCI_EXP_SLTCTL_PFDE,
                MRL_sensor_enabled=pci.PCI_EXP_SLTCTL_MRLSCE,
                presence_detect_enabled=pci.PCI_EXP_SLTCTL_PDCE,
                command_completed_interrupt=pci.PCI_EXP_SLTCTL_CCIE,
                hot_plug_interrupt=pci.PCI_EXP_SLTCTL_HPIE,
            ),
            _indicator("attention", pci.PCI_EXP_SLTCTL_AIC),
            _indicator("power", pci.PCI_EXP_SLTCTL_PIC),
            Part("power controller control", pci.PCI_EXP_SLTCTL_PCC, {0: "power on", 1: "power off"}),
            *bits(
                electromechanical_interlock_control=pci.PCI_EXP_SLTCTL_EIC,
                link_state_changed_enabled=pci.PCI_EXP_SLTCTL_DLLSCE,
            ),
        ),
    ),
    Register(
        "slot_status",
        pci.PCI_EXP_SLTSTA,
        2,
        bits(
            attention_button_pressed=pci.PCI_EXP_SLTSTA_ABP,
            power_fault_detected=pci.PCI_EXP_SLTSTA_PFD,
            MRL_sensor_changed=pci.PCI_EXP_SLTSTA_MRLSC,
            presence_detect_changed=pci.PCI_EXP_SLTSTA_PDC,
            command_completed=pci.PCI_EXP_SLTSTA_CC,
            MRL_sensor_state=pci.PCI_EXP_SLTSTA_MRLSS,
            presence_detect_state=pci.PCI_EXP_SLTSTA_PDS,
            electromechanical_interlock_status=pci.PCI_EXP_SLTSTA_EIS,
            link_state_changed=pci.PCI_EXP_SLTSTA_DLLSC,
        ),
    ),
)
EXPRESS_ROOT: Final = (
    Register(
        "root_control",
        pci.PCI_EXP_RTCTL,
        2,
        bits(
            system_error_on_correctable_error=pci.PCI_EXP_RTCTL_SECEE,
            system_error_on_non_fatal_error=pci.PCI_EXP_RTCTL_SENFEE,
            system_error_on_fatal_error=pci.PCI_EXP_RTCTL_SEFEE,
            PME_interrupt=pci.PCI_EXP_RTCTL_PMEIE,
            retry_status_visible=pci.PCI_EXP_RTCTL_RRS_SVE,
        ),
    ),
    Register(
        "root_capabilities", pci.PCI_EXP_RTCAP, 2, bits(retry_status_visibility=pci.PCI_EXP_RTCAP_RRS_SV)
    ),
    Register(
        "root_status",
        pci.PCI_EXP_RTSTA,
        4,
        (
            Part(
                "PME requester",
                pci.PCI_EXP_RTSTA_PME_RQ_ID,
                lambda who: (who and f"PME by {bus_address(who)}") or "",
            ),
            *bits(PME_status=pci.PCI_EXP_RTSTA_PME, PME_pending=pci.PCI_EXP_RTSTA_PENDING),
        ),
    ),
)
EXPRESS_2: Final = (
    Register(
        "device_capabilities_2",
        pci.PCI_EXP_DEVCAP2,
        4,
        bits(
            completion_timeout_disable=pci.PCI_EXP_DEVCAP2_COMP_TMOUT_DIS,
            ARI_forwarding=pci.PCI_EXP_DEVCAP2_ARI,
            AtomicOp_routing=pci.PCI_EXP_DEVCAP2_ATOMIC_ROUTE,
            AtomicOp_32_bit=pci.PCI_EXP_DEVCAP2_ATOMIC_COMP32,
            AtomicOp_64_bit=pci.PCI_EXP_DEVCAP2_ATOMIC_COMP64,
            AtomicOp_128_bit=pci.PCI_EXP_DEVCAP2_ATOMIC_COMP128,
            LTR=pci.PCI_EXP_DEVCAP2_LTR,
            TPH_completer=pci.PCI_EXP_DEVCAP2_TPH_COMP_MASK,
            OBFF=pci.PCI_EXP_DEVCAP2_OBFF_MASK,
            end_to_end_TLP_prefixes=pci.PCI_EXP_DEVCAP2_EE_PREFIX,
            max_end_to_end_TLP_prefixes=pci.PCI_EXP_DEVCAP2_EE_PREFIX_MAX,
        ),
    ),
    Register(
        "device_control_2",
        pci.PCI_EXP_DEVCTL2,
        2,
        bits(
            completion_timeout=pci.PCI_EXP_DEVCTL2_COMP_TIMEOUT,
            completion_timeout_disable=pci.PCI_EXP_DEVCTL2_COMP_TMOUT_DIS,
            ARI_forwarding=pci.PCI_EXP_DEVCTL2_ARI,
            AtomicOp_requester=pci.PCI_EXP_DEVCTL2_ATOMIC_REQ,
            AtomicOp_egress_blocking=pci.PCI_EXP_DEVCTL2_ATOMIC_EGRESS_BLOCK,
            IDO_request=pci.PCI_EXP_DEVCTL2_IDO_REQ_EN,
            IDO_completion=pci.PCI_EXP_DEVCTL2_IDO_CMP_EN,
            LTR=pci.PCI_EXP_DEVCTL2_LTR_EN,
            OBFF=pci.PCI_EXP_DEVCTL2_OBFF_WAKE_EN,
        ),
    ),
    Register("device_status_2", pci.PCI_EXP_DEVSTA2, 2),
    Register(
        "link_capabilities_2",
        pci.PCI_EXP_LNKCAP2,
        4,
        (
            Part("2.5 GT/s", pci.PCI_EXP_LNKCAP2_SLS_2_5GB),
            Part("5 GT/s", pci.PCI_EXP_LNKCAP2_SLS_5_0GB),
            Part("8 GT/s", pci.PCI_EXP_LNKCAP2_SLS_8_0GB),
            Part("16 GT/s", pci.PCI_EXP_LNKCAP2_SLS_16_0GB),
            Part("32 GT/s", pci.PCI_EXP_LNKCAP2_SLS_32_0GB),
            Part("64 GT/s", pci.PCI_EXP_LNKCAP2_SLS_64_0GB),
            Part("crosslink", pci.PCI_EXP_LNKCAP2_CROSSLINK),
        ),
    ),
    Register(
        "link_control_2",
        pci.PCI_EXP_LNKCTL2,
        2,
        (
            Part("target link speed", pci.PCI_EXP_LNKCTL2_TLS, SPEEDS),
            *bits(
                enter_compliance=pci.PCI_EXP_LNKCTL2_ENTER_COMP,
                autonomous_speed_disable=pci.PCI_EXP_LNKCTL2_HASD,
                transmit_margin=pci.PCI_EXP_LNKCTL2_TX_MARGIN,
            ),
        ),
    ),
    Register("link_status_2", pci.PCI_EXP_LNKSTA2, 2),
    Register("slot_capabilities_2", pci.PCI_EXP_SLTCAP2, 4),
    Register("slot_control_2", pci.PCI_EXP_SLTCTL2, 2),
    Register("slot_status_2", pci.PCI_EXP_SLTSTA2, 2),
)


def express(flags: int) -> tuple[Register, ...]:
    """The registers of the PCI Express capability whose second word is `flags`.

    In version 1 QEMU has those of the link for any device (pcie_cap_v1_fill of hw/pci/pcie.c).
    """
    common = (EXPRESS_FLAGS, *EXPRESS_DEVICE, *EXPRESS_LINK)
    if flags & pci.PCI_EXP_FLAGS_VERS >= 2:
        return (*common, *EXPRESS_SLOT, *EXPRESS_ROOT, *EXPRESS_2)
    port = (flags & pci.PCI_EXP_FLAGS_TYPE) >> 4
    if port in (pci.PCI_EXP_TYPE_ROOT_PORT, pci.PCI_EXP_TYPE_DOWNSTREAM):
        return (*common, *EXPRESS_SLOT, *EXPRESS_ROOT)
    return common
