"""The tunsec lab: a kernel that has everything, and scenarios of hosts in network namespaces.

Two sides that never import each other. The builder (`cli`, `boot`, `kernel`, `image`, `site`,
`doctor`, `cache`, `apt`) runs on the host with the standard library alone. The scenario side
(`topology`, `host`, `external`, `process`, `faults`, `capture`, `packets`, `probe`, `features`,
with `namespaces` and `carrier` below) runs on whatever kernel it finds: in the lab guest or, as
root, on a capable host.
"""
