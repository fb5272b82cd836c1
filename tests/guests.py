"""Guests that need no image: programs of a few instructions that keep changing memory."""

import struct

AARCH64 = """
    d2a82001  movz  x1, #0x4100, lsl #16
    d2a82802  movz  x2, #0x4140, lsl #16
    39000020  strb  w0, [x1]
    91400421  add   x1, x1, #0x1000
    eb02003f  cmp   x1, x2
    54ffffa3  b.lo  .-12
    11000400  add   w0, w0, #1
    17fffff9  b     .-28
"""
S390X = """
    c01100200000  lgfi  %r1, 0x200000
    c02100600000  lgfi  %r2, 0x600000
    eb011000006a  asi   0(%r1), 1
    a71b1000      aghi  %r1, 4096
    b9200012      cgr   %r1, %r2
    a744fff9      jl    .-14
    a7f4fff1      j     .-30
"""
S390X_ENTRY = 0x2000
X86_64 = """
    fa                    cli
    31c0                  xor ax, ax
    8ed8                  mov ds, ax
    66c706001003200000    mov dword ptr [0x1000], 0x2003
    66a30410              mov dword ptr [0x1004], eax
    66c706002003300000    mov dword ptr [0x2000], 0x3003
    66c706042000000000    mov dword ptr [0x2004], 0
    66c706003083000000    mov dword ptr [0x3000], 0x83
    66c706043000000000    mov dword ptr [0x3004], 0
    66c706041000000000    mov dword ptr [0x1004], 0
    66c706182003400000    mov dword ptr [0x2018], 0x4003
    66c7061c2000000000    mov dword ptr [0x201c], 0
    66c706b04f8300c0fe    mov dword ptr [0x4fb0], 0xfec00083
    66c706b44f00000000    mov dword ptr [0x4fb4], 0
    66c706b84f8300e0fe    mov dword ptr [0x4fb8], 0xfee00083
    66c706bc4f00000000    mov dword ptr [0x4fbc], 0
    66b8a0060000          mov eax, 0x6a0
    0f22e0                mov cr4, eax
    66b800100000          mov eax, 0x1000
    0f22d8                mov cr3, eax
    66b9800000c0          mov ecx, 0xc0000080
    0f32                  rdmsr
    660d01090000          or eax, 0x901
    0f30                  wrmsr
    0f0116f07d            lgdt [0x7df0]
    66b833000180          mov eax, 0x80010033
    0f22c0                mov cr0, eax
    eaaa7c0800            ljmp 8:0x7caa
    b810000000            mov eax, 0x10
    8ed8                  mov ds, eax
    8ec0                  mov es, eax
    8ed0                  mov ss, eax
    bf0000c0fe            mov edi, 0xfec00000
    c7071a000000          mov dword ptr [rdi], 0x1a
    c7471037a90000        mov dword ptr [rdi + 0x10], 0xa937
    c7071b000000          mov dword ptr [rdi], 0x1b
    c7471000000003        mov dword ptr [rdi + 0x10], 0x03000000
    bf0000e0fe            mov edi, 0xfee00000
    c7877003000055000100  mov dword ptr [rdi + 0x370], 0x10055
    c7872003000041000200  mov dword ptr [rdi + 0x320], 0x20041
    c787e003000003000000  mov dword ptr [rdi + 0x3e0], 3
    c7878003000000001000  mov dword ptr [rdi + 0x380], 0x100000
    bf0000d0fe            mov edi, 0xfed00000
    c787000100004c000000  mov dword ptr [rdi + 0x100], 0x4c
    c7870801000080969800  mov dword ptr [rdi + 0x108], 0x989680
    c7471001000000        mov dword ptr [rdi + 0x10], 1
    8b7704                mov esi, [rdi + 4]
    dbe3                  fninit
    d9e8                  fld1
    d9eb                  fldpi
    48b84444333322221111  movabs rax, 0x1111222233334444
    0f23c0                mov dr0, rax
    66480f6ec8            movq xmm1, rax
    b901000d00            mov ecx, 0x000d0001
    0f23f9                mov dr7, rcx
    b92c000000            mov ecx, 0x2c
    ba2d000000            mov edx, 0x2d
    bb2b000000            mov ebx, 0x2b
    bc00700000            mov esp, 0x7000
    bd25000000            mov ebp, 0x25
    bf27000000            mov edi, 0x27
    41b828000000          mov r8d, 0x28
    41b929000000          mov r9d, 0x29
    41ba30000000          mov r10d, 0x30
    41bb31000000          mov r11d, 0x31
    41bc32000000          mov r12d, 0x32
    41bd33000000          mov r13d, 0x33
    41be34000000          mov r14d, 0x34
    49bf1122334455667788  movabs r15, 0x8877665544332211
    fd                    std
    f9                    stc
    ebfe                  jmp .
"""
PPC64 = """
    39000000  li     r8, 0
    38600008  li     r3, 8          the hypercall H_ENTER
    38800000  li     r4, 0
    7d054378  mr     r5, r8
    38c00001  li     r6, 1          valid
    38e00190  li     r7, 0x190      the first page of memory
    44000022  sc     1
    39080008  addi   r8, r8, 8
    2c280800  cmpdi  r8, 0x800
    4180ffe0  blt    .-32
    48000000  b      .
"""
PPC64_ENTRY = 0x100


def _code(listing: str) -> list[bytes]:
    return [bytes.fromhex(line.split()[0]) for line in listing.splitlines() if line.strip()]


def aarch64_loop() -> bytes:
    """For board virt, at any place in memory: it adds 1 to a byte of every page from 16 to 20 MiB."""
    return b"".join(word[::-1] for word in _code(AARCH64))


def _words(*words: int) -> bytes:
    return b"".join(word.to_bytes(4, "little") for word in words)


SYSTEM_REGISTERS = {
    0xDE82: ("TPIDR_EL0", 2),
    0xC684: ("TPIDR_EL1", 3),
    0xC510: ("MAIR_EL1", 4),
    0xC600: ("VBAR_EL1", 0),
    0xC681: ("CONTEXTIDR_EL1", 6),
    0xDF1A: ("CNTV_CVAL_EL0", 7),
}
"""op0 op1 CRn CRm op2, as Arm's manual has them, and the number of the register that is put there."""


def aarch64_registers() -> bytes:
    """For board virt: something else in each register, some system registers too; then it stays there.

    The virtual timer is armed for a time, in its ticks, that is in x7.
    """
    return _words(
        *(0xD2800000 | (0x100 + number) << 5 | number for number in range(1, 31)),  # movz xN, #0x100 + N
        0x9100003F,  # mov sp, x1
        0xD2C02007,  # movz x7, #0x100, lsl #32
        *(
            0xD5100000 | (encoding & 0x7FFF) << 5 | number
            for encoding, (_, number) in SYSTEM_REGISTERS.items()
        ),
        0xD51BE321,  # msr cntv_ctl_el0, x1: the timer is on
        0xEB00001F,  # cmp x0, x0
        0x14000000,  # b .
    )


def arm_registers() -> bytes:
    """The same of 32 bits."""
    return _words(
        *(0xE3A00000 | number << 12 | 0x80 + number for number in range(15)),  # mov rN, #0x80 + N
        0xE1500000,  # cmp r0, r0
        0xEAFFFFFE,  # b .
    )


def x86_64_registers() -> bytes:
    """A disk for a PC: 64-bit code that puts something else into each register, and stays there.

    Before that it sets up pin 5 of the I/O APIC and the local APIC's timer, whose interrupts nobody takes,
    and starts the HPET with a timer of 100 ms; rsi has the HPET's period in femtoseconds.
    """
    image = bytearray(b"".join(_code(X86_64)).ljust(1 << 20, b"\0"))
    struct.pack_into("<3Q", image, 0x1D8, 0, 0x00209A0000000000, 0x00CF92000000FFFF)
    struct.pack_into("<HI", image, 0x1F0, 23, 0x7DD8)
    image[510:512] = b"\x55\xaa"
    return bytes(image)


def aarch64_ring(page: int) -> bytes:
    """For board virt: queue 0 of the first virtio device, of 8 descriptors, is at a page of memory."""
    return _words(
        0xD2A14001,  # movz x1, #0xa00, lsl #16
        0xF287C001,  # movk x1, #0x3e00: the last of the places for devices
        0x52820000,  # movz w0, #4096
        0xB9002820,  # str w0, [x1, #0x28]: the size of a page
        0xB900303F,  # str wzr, [x1, #0x30]: which queue
        0x52800102,  # movz w2, #8
        0xB9003822,  # str w2, [x1, #0x38]: its size
        0xB9003C20,  # str w0, [x1, #0x3c]: its alignment
        0x52A00003 | (page >> 16) << 5,  # movz w3, #page, lsl #16
        0x72800003 | (page & 0xFFFF) << 5,  # movk w3, #page
        0xB9004023,  # str w3, [x1, #0x40]: its page
        0x14000000,  # b .
    )


def riscv64_ring(page: int) -> bytes:
    """The same for RISC-V, loaded at 0x80000000."""

    def stored(register: int, at: int) -> int:  # sw xN, at(x1)
        return (at >> 5) << 25 | register << 20 | 1 << 15 | 2 << 12 | (at & 31) << 7 | 0x23

    return _words(
        0x100080B7,  # lui x1, 0x10008: the last of the places for devices
        0x00001137,  # lui x2, 1
        0x00800193,  # addi x3, x0, 8
        (page >> 12) << 12 | 0x237,  # lui x4, page
        (page & 0xFFF) << 20 | 0x20213,  # addi x4, x4, page
        *(stored(*each) for each in ((2, 0x28), (0, 0x30), (3, 0x38), (2, 0x3C), (4, 0x40))),
        0x0000006F,  # j .
    )


def riscv64_registers() -> bytes:
    """The same for RISC-V, loaded at 0x80000000; mscratch, mepc and mtvec have what is in x5, x4 and x8."""
    return _words(
        *((0x100 + number) << 20 | number << 7 | 0x13 for number in range(1, 32)),  # addi xN, x0, #0x100 + N
        *(
            register << 20 | number << 15 | 0x1073
            for register, number in ((0x340, 5), (0x341, 4), (0x305, 8))
        ),
        0x0000006F,  # j .
    )


def ppc64_registers() -> bytes:
    """The same for PowerPC, as firmware; LR, CTR, XER, SRR0, SRR1, SPRG0, SPRG2 have what is in r8 to r14."""
    return bytes(PPC64_ENTRY) + b"".join(
        word.to_bytes(4, "big")
        for word in (
            *(0x38000100 | number << 21 | number for number in range(32)),  # li rN, 0x100 + N
            *(
                0x7C0003A6 | 8 + at << 21 | (register & 31) << 16 | register >> 5 << 11  # mtspr
                for at, register in enumerate((8, 9, 1, 26, 27, 272, 274))
            ),
            0x2C000000,  # cmpwi r0, 0
            0x48000000,  # b .
        )
    )


def _s390x_kernel(code: bytes) -> bytes:
    """The PSW that leads to the code, and the code."""
    psw = bytes.fromhex("00080000") + (0x80000000 | S390X_ENTRY).to_bytes(4, "big")
    return psw.ljust(S390X_ENTRY, b"\0") + code + bytes(4096)


def s390x_registers() -> bytes:
    """The same for s390x, as a kernel; access registers 1 and 2 have what is in r1 and r2."""
    code = b"".join(bytes((0xA7, number << 4 | 9, 1, number)) for number in range(16))  # lghi %rN, 0x100 + N
    code += bytes.fromhex("b24e0011 b24e0022")  # sar
    code += bytes.fromhex("a50e2000 0400 a7f40000")  # llilh %r0, 0x2000; spm %r0: condition code 2; j .
    return _s390x_kernel(code)


def ppc64_hash_table() -> bytes:
    """Firmware for pseries: it makes an entry in each of the first 256 groups of the hash page table."""
    return bytes(PPC64_ENTRY) + b"".join(_code(PPC64))


def s390x_loop() -> bytes:
    """A kernel for s390-ccw-virtio: it adds 1 to a byte of every page from 2 to 6 MiB."""
    return _s390x_kernel(b"".join(_code(S390X)))


# Boot sectors, in 16 bits at 0x7c00, that do one thing to the hardware and halt.
LOOPS = """
    ebfe            jmp  .
"""
LEGACY_VIRTIO = """
    66b810280080    mov  eax, 0x80002810    ; PCI 00:05.0, BAR 0
    baf80c          mov  dx, 0xcf8
    66ef            out  dx, eax
    b2fc            mov  dl, 0xfc
    66ed            in   eax, dx
    24fc            and  al, 0xfc           ; I/O ports
    89c2            mov  dx, ax
"""
"""How those begin that use a legacy virtio device: its first port is in dx."""
TAKES_FEATURES = f"""{LEGACY_VIRTIO}
    66ed            in   eax, dx            ; what the host has
    6625ffffffbf    and  eax, 0xbfffffff    ; but the bit of a driver that took it for its own
    83c204          add  dx, 4
    66ef            out  dx, eax            ; what the guest takes
    f4              hlt
    ebfd            jmp  .-1
"""
RING_ABOVE_4_GIB = f"""{LEGACY_VIRTIO}
    83c208          add  dx, 8
    66b800001000    mov  eax, 0x100000      ; the page of queue 0
    66ef            out  dx, eax
    f4              hlt
    ebfd            jmp  .-1
"""
HOTPLUGS_CPUS = """
    bad80c          mov  dx, 0x0cd8         ; a 0 here, and the ICH9 knows a guest that hotplugs CPUs
    b000            mov  al, 0
    ee              out  dx, al
    f4              hlt
    ebfd            jmp  .-1
"""


def takes(features: int) -> str:
    """One that takes these features of the device, whatever it has."""
    return f"""{LEGACY_VIRTIO}
    83c204          add  dx, 4
    66b8{features.to_bytes(4, "little").hex()}    mov  eax, {features:#x}
    66ef            out  dx, eax
    f4              hlt
    ebfd            jmp  .-1
"""


def sector(listing: str) -> bytes:
    """A disk image with one of these as its boot sector."""
    image = bytearray(1 << 20)
    code = b"".join(_code(listing))
    image[: len(code)] = code
    image[510:512] = b"\x55\xaa"
    return bytes(image)
