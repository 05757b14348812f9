"""XFRM netlink: the kernel's SAD and SPD as bytes (include/uapi/linux/xfrm.h).

`sa` and `sp` code whole messages, `bulk` codes many of the same shape fast, `events` reads
notifications. Keys are dropped at decoding unless asked for. Nothing here opens a socket.
"""
