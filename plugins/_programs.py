"""Names, types and first octets by which a file is recognized as a program."""

from typing import Final

# Files that Windows, macOS and office programs run, or open without a question about their origin.
PROGRAMS: Final = (
    *("ade", "adp", "apk", "appx", "appxbundle", "bat", "chm", "cmd", "com", "cpl", "dll", "exe"),
    *("hta", "img", "ins", "iso", "isp", "jar", "js", "jse", "lib", "lnk", "mde", "msc", "msi"),
    *("msix", "msp", "mst", "pif", "ps1", "reg", "scf", "scr", "sct", "sys", "url", "vb", "vbe"),
    *("vbs", "vhd", "vhdx", "vxd", "wsc", "wsf", "wsh", "xll"),
)
TYPES: Final = (
    *("application/x-msdownload", "application/x-dosexec", "application/x-msdos-program"),
    *("application/vnd.microsoft.portable-executable", "application/hta"),
    "application/x-ms-shortcut",
)
_MAGIC: Final = (
    b"\x7fELF",
    *(b"\xcf\xfa\xed\xfe", b"\xce\xfa\xed\xfe", b"\xca\xfe\xba\xbe"),  # macOS, Java
    b"L\0\0\0\1\x14\2\0",  # a shortcut of Windows
)


def is_program(head: bytes) -> bool:
    """Return whether a file that begins with these octets is a program."""
    dos = head.startswith(b"MZ") and b"\0" in head[:64]  # a text may begin with MZ too
    return dos or head.startswith(_MAGIC)
