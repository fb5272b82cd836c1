"""x86: arch/x86/include, linux/{kvm,mc146818rtc,timex}.h of Linux 6.12.117; made by tests/archtables.py."""

GENERAL: dict[int, str] = {
    0: "rax",
    1: "rcx",
    2: "rdx",
    3: "rbx",
    4: "rsp",
    5: "rbp",
    6: "rsi",
    7: "rdi",
    8: "r8",
    9: "r9",
    10: "r10",
    11: "r11",
    12: "r12",
    13: "r13",
    14: "r14",
    15: "r15",
}
SEGMENTS: dict[int, str] = {0: "ES", 1: "CS", 2: "SS", 3: "DS", 4: "FS", 5: "GS", 6: "TR", 7: "LDTR"}
EFLAGS: dict[int, str] = {
    0: "CF",
    2: "PF",
    4: "AF",
    6: "ZF",
    7: "SF",
    8: "TF",
    9: "IF",
    10: "DF",
    11: "OF",
    14: "NT",
    16: "RF",
    17: "VM",
    18: "AC",
    19: "VIF",
    20: "VIP",
    21: "ID",
}
EFLAGS_FIXED = 2
EFLAGS_IOPL = 12288
CR0: dict[int, str] = {
    0: "PE",
    1: "MP",
    2: "EM",
    3: "TS",
    4: "ET",
    5: "NE",
    16: "WP",
    18: "AM",
    29: "NW",
    30: "CD",
    31: "PG",
}
CR3: dict[int, str] = {3: "PWT", 4: "PCD", 61: "LAM_U57", 62: "LAM_U48", 63: "PCID_NOFLUSH"}
CR4: dict[int, str] = {
    0: "VME",
    1: "PVI",
    2: "TSD",
    3: "DE",
    4: "PSE",
    5: "PAE",
    6: "MCE",
    7: "PGE",
    8: "PCE",
    9: "OSFXSR",
    10: "OSXMMEXCPT",
    11: "UMIP",
    12: "LA57",
    13: "VMXE",
    14: "SMXE",
    16: "FSGSBASE",
    17: "PCIDE",
    18: "OSXSAVE",
    20: "SMEP",
    21: "SMAP",
    22: "PKE",
    23: "CET",
    28: "LAM_SUP",
    32: "FRED",
}
DR6: dict[int, str] = {
    0: "TRAP0",
    1: "TRAP1",
    2: "TRAP2",
    3: "TRAP3",
    11: "BUS_LOCK",
    14: "STEP",
    15: "SWITCH",
}
DR_STATUS = 6
DR_CONTROL = 7
DR6_RESERVED = 4294905840
DR_CONTROL_SHIFT = 16
DR_CONTROL_SIZE = 4
DR_ACCESS: dict[int, str] = {0: "execute", 1: "write", 3: "read"}
DR_LENGTH: dict[int, int] = {0: 1, 4: 2, 12: 4, 8: 8}
DESCRIPTOR: dict[str, int] = {
    "ACCESSED": 1,
    "DATA_WRITABLE": 2,
    "CODE_READABLE": 2,
    "DATA_EXPAND_DOWN": 4,
    "CODE_CONFORMING": 4,
    "CODE_EXECUTABLE": 8,
    "S": 16,
    "PRESENT": 128,
    "LONG_CODE": 8192,
    "DB": 16384,
    "GRANULARITY_4K": 32768,
}
SYSTEM_SEGMENTS: dict[int, str] = {9: "TSS", 2: "LDT"}
XFEATURES: dict[int, str] = {
    0: "FP",
    1: "SSE",
    2: "YMM",
    3: "BNDREGS",
    4: "BNDCSR",
    5: "OPMASK",
    6: "ZMM_Hi256",
    7: "Hi16_ZMM",
    8: "PT",
    9: "PKRU",
    10: "PASID",
    11: "CET_USER",
    12: "CET_KERNEL",
    15: "LBR",
    17: "XTILE_CFG",
    18: "XTILE_DATA",
}
EFER: dict[int, str] = {
    0: "SCE",
    8: "LME",
    10: "LMA",
    11: "NX",
    12: "SVME",
    13: "LMSLE",
    14: "FFXSR",
    21: "AUTOIBRS",
}
MEMORY_TYPES: dict[int, str] = {0: "UC", 1: "WC", 4: "WT", 5: "WP", 6: "WB", 7: "UC_MINUS"}
MTRR_FIXED: list[str] = [
    "MTRRfix64K_00000",
    "MTRRfix16K_80000",
    "MTRRfix16K_A0000",
    "MTRRfix4K_C0000",
    "MTRRfix4K_C8000",
    "MTRRfix4K_D0000",
    "MTRRfix4K_D8000",
    "MTRRfix4K_E0000",
    "MTRRfix4K_E8000",
    "MTRRfix4K_F0000",
    "MTRRfix4K_F8000",
]
MTRR: dict[str, int] = {
    "MTRR_DEF_TYPE_TYPE": 255,
    "MTRR_DEF_TYPE_FE": 1024,
    "MTRR_DEF_TYPE_E": 2048,
    "MTRR_PHYSBASE_TYPE": 255,
    "MTRR_PHYSMASK_V": 2048,
}
MACHINE_CHECK: dict[int, str] = {0: "CTL", 1: "STATUS", 2: "ADDR", 3: "MISC"}
MCG_BANKS = 255
MCG_CAP: dict[int, str] = {8: "CTL_P", 9: "EXT_P", 10: "CMCI_P", 24: "SER_P", 26: "ELOG_P", 27: "LMCE_P"}
MCG_STATUS: dict[int, str] = {0: "RIPV", 1: "EIPV", 2: "MCIP", 3: "LMCES", 12: "SEAM_NR"}
SPEC_CTRL: dict[int, str] = {0: "IBRS", 1: "STIBP", 2: "SSBD", 6: "RRSBA_DIS_S", 10: "BHI_DIS_S"}
FEATURE_CONTROL: dict[int, str] = {
    0: "LOCKED",
    1: "VMX_ENABLED_INSIDE_SMX",
    2: "VMX_ENABLED_OUTSIDE_SMX",
    17: "SGX_LC_ENABLED",
    18: "SGX_ENABLED",
    20: "LMCE_ENABLED",
}
MISC_ENABLE: dict[int, str] = {
    0: "FAST_STRING",
    1: "TCC",
    2: "X87_COMPAT",
    3: "TM1",
    4: "SPLIT_LOCK_DISABLE",
    6: "L3CACHE_DISABLE",
    7: "EMON",
    8: "SUPPRESS_LOCK",
    9: "PREFETCH_DISABLE",
    10: "FERR",
    11: "BTS_UNAVAIL",
    12: "PEBS_UNAVAIL",
    13: "TM2",
    16: "ENHANCED_SPEEDSTEP",
    18: "MWAIT",
    19: "ADJ_PREF_DISABLE",
    20: "SPEEDSTEP_LOCK",
    22: "LIMIT_CPUID",
    23: "XTPR_DISABLE",
    24: "L1D_CONTEXT",
    34: "XD_DISABLE",
    37: "DCU_PREF_DISABLE",
    38: "TURBO_DISABLE",
    39: "IP_PREF_DISABLE",
}
APIC_BASE: dict[int, str] = {8: "BSP", 10: "X2APIC", 11: "ENABLE"}
KVM_MSR_ENABLED = 1
MP_STATE: dict[int, str] = {
    0: "RUNNABLE",
    1: "UNINITIALIZED",
    2: "INIT_RECEIVED",
    3: "HALTED",
    4: "SIPI_RECEIVED",
    5: "STOPPED",
    6: "CHECK_STOP",
    7: "OPERATING",
    8: "LOAD",
    9: "AP_RESET_HOLD",
    10: "SUSPENDED",
}
LOCAL_VECTORS: dict[int, str] = {0: "LVTT", 1: "LVTTHMR", 2: "LVTPC", 3: "LVT0", 4: "LVT1", 5: "LVTERR"}
DELIVERY: dict[int, str] = {
    0: "FIXED",
    1: "LOWEST",
    2: "SMI",
    3: "REMRD",
    4: "NMI",
    5: "INIT",
    6: "STARTUP",
    7: "EXTINT",
}
APIC_ERRORS: dict[int, str] = {
    0: "SEND_CS",
    1: "RECV_CS",
    2: "SEND_ACC",
    3: "RECV_ACC",
    5: "SENDILL",
    6: "RECVILL",
    7: "ILLREGA",
}
TIMER_DIVIDE: dict[int, int] = {11: 1, 0: 2, 1: 4, 2: 8, 3: 16, 8: 32, 9: 64, 10: 128}
APIC_SPIV_APIC_ENABLED = 256
APIC_SPIV_FOCUS_DISABLED = 512
APIC_VECTOR_MASK = 255
APIC_MODE_MASK = 1792
APIC_LVT_TIMER_PERIODIC = 131072
APIC_LVT_TIMER_TSCDEADLINE = 262144
APIC_LVT_MASKED = 65536
APIC_LVT_LEVEL_TRIGGER = 32768
APIC_LVT_REMOTE_IRR = 16384
APIC_INPUT_POLARITY = 8192
APIC_SEND_PENDING = 4096
APIC_ICR_BUSY = 4096
APIC_DEST_LOGICAL = 2048
APIC_DEST_SELF = 262144
APIC_DEST_ALLINC = 524288
APIC_DEST_ALLBUT = 786432
APIC_INT_ASSERT = 16384
APIC_INT_LEVELTRIG = 32768
REDIRECTION: dict[str, int] = {
    "vector": 255,
    "delivery_mode": 1792,
    "dest_mode_logical": 2048,
    "delivery_status": 4096,
    "active_low": 8192,
    "irr": 16384,
    "is_level": 32768,
    "masked": 65536,
    "reserved_0": 4294836224,
    "reserved_1": 562945658454016,
    "virt_destid_8_14": 71494644084506624,
    "destid_0_7": 18374686479671623680,
}
HPET_CONFIG: dict[int, str] = {0: "ENABLE", 1: "LEGACY"}
HPET_TIMER: dict[int, str] = {1: "LEVEL", 2: "ENABLE", 3: "PERIODIC", 6: "SETVAL", 8: "32BIT", 14: "FSB"}
HPET_TN_ROUTE = 15872
RTC: dict[str, int] = {
    "SECONDS": 0,
    "MINUTES": 2,
    "HOURS": 4,
    "DAY_OF_MONTH": 7,
    "MONTH": 8,
    "YEAR": 9,
    "CONTROL": 11,
    "DM_BINARY": 4,
    "24H": 2,
}
RTC_CONTROL: dict[int, str] = {3: "SQWE", 4: "UIE", 5: "AIE", 6: "PIE", 7: "SET"}
PIT_TICK_RATE = 1193182
