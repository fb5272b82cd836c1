"""Guests that need no image: programs of a few instructions that keep changing memory."""

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


def ppc64_hash_table() -> bytes:
    """Firmware for pseries: it makes an entry in each of the first 256 groups of the hash page table."""
    return bytes(PPC64_ENTRY) + b"".join(_code(PPC64))


def s390x_loop() -> bytes:
    """A kernel for s390-ccw-virtio: it adds 1 to a byte of every page from 2 to 6 MiB."""
    head = bytes.fromhex("00080000") + (0x80000000 | S390X_ENTRY).to_bytes(4, "big")
    return head.ljust(S390X_ENTRY, b"\0") + b"".join(_code(S390X)) + bytes(4096)


# Boot sectors, in 16 bits at 0x7c00, that do one thing to the hardware and halt.
TAKES_FEATURES = """
    66b810280080    mov  eax, 0x80002810    ; PCI 00:05.0, BAR 0
    baf80c          mov  dx, 0xcf8
    66ef            out  dx, eax
    b2fc            mov  dl, 0xfc
    66ed            in   eax, dx
    24fc            and  al, 0xfc           ; I/O ports
    89c2            mov  dx, ax
    66ed            in   eax, dx            ; what the host has
    6625ffffffbf    and  eax, 0xbfffffff    ; but the bit of a driver that took it for its own
    83c204          add  dx, 4
    66ef            out  dx, eax            ; what the guest takes
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


def sector(listing: str) -> bytes:
    """A disk image with one of these as its boot sector."""
    image = bytearray(1 << 20)
    code = b"".join(_code(listing))
    image[: len(code)] = code
    image[510:512] = b"\x55\xaa"
    return bytes(image)
