"""RISC-V: uapi/asm/ptrace.h and asm/csr.h of arch/riscv/include of Linux 6.12.117; made by tests/archtables.py."""

GENERAL: dict[int, str] = {
    0: "zero",
    1: "ra",
    2: "sp",
    3: "gp",
    4: "tp",
    5: "t0",
    6: "t1",
    7: "t2",
    8: "s0",
    9: "s1",
    10: "a0",
    11: "a1",
    12: "a2",
    13: "a3",
    14: "a4",
    15: "a5",
    16: "a6",
    17: "a7",
    18: "s2",
    19: "s3",
    20: "s4",
    21: "s5",
    22: "s6",
    23: "s7",
    24: "s8",
    25: "s9",
    26: "s10",
    27: "s11",
    28: "t3",
    29: "t4",
    30: "t5",
    31: "t6",
}
STATUS: dict[int, str] = {1: "SIE", 3: "MIE", 5: "SPIE", 7: "MPIE", 8: "SPP", 18: "SUM"}
STATES: dict[str, int] = {"FS": 24576, "VS": 1536, "XS": 98304}
STATE_NAMES: list[str] = ["off", "initial", "clean", "dirty"]
MPP = 6144
INTERRUPTS: dict[int, str] = {
    1: "S_SOFT",
    2: "VS_SOFT",
    3: "M_SOFT",
    5: "S_TIMER",
    6: "VS_TIMER",
    7: "M_TIMER",
    9: "S_EXT",
    10: "VS_EXT",
    11: "M_EXT",
    12: "S_GEXT",
    13: "PMU_OVF",
}
EXCEPTIONS: dict[int, str] = {
    0: "INST_MISALIGNED",
    1: "INST_ACCESS",
    2: "INST_ILLEGAL",
    3: "BREAKPOINT",
    4: "LOAD_MISALIGNED",
    5: "LOAD_ACCESS",
    6: "STORE_MISALIGNED",
    7: "STORE_ACCESS",
    8: "SYSCALL",
    9: "HYPERVISOR_SYSCALL",
    10: "SUPERVISOR_SYSCALL",
    12: "INST_PAGE_FAULT",
    13: "LOAD_PAGE_FAULT",
    15: "STORE_PAGE_FAULT",
    20: "INST_GUEST_PAGE_FAULT",
    21: "LOAD_GUEST_PAGE_FAULT",
    22: "VIRTUAL_INST_FAULT",
    23: "STORE_GUEST_PAGE_FAULT",
}
PAGING: dict[int, str] = {10: "Sv57", 9: "Sv48", 8: "Sv39"}
PROTECTION: dict[int, str] = {0: "R", 1: "W", 2: "X"}
PROTECTION_ADDRESS = 24
PROTECTION_MODES: dict[int, str] = {8: "TOR", 16: "NA4", 24: "NAPOT"}
PROTECTION_LOCKED = 128
HSTATUS: dict[int, str] = {
    5: "VSBE",
    6: "GVA",
    7: "SPV",
    8: "SPVP",
    9: "HU",
    20: "VTVM",
    21: "VTW",
    22: "VTSR",
}
ENVCFG: dict[int, str] = {0: "FIOM", 6: "CBCFE", 7: "CBZE", 62: "PBMTE", 63: "STCE"}
