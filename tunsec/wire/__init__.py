"""Bytes <-> model: netlink, records, control API. No sockets here."""
