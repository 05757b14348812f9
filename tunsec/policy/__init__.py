"""The operator's YAML -> Intent -> Desired: what this host's kernel must hold.

Pure: the functions take text and the name to show for it; reading files is the caller's.

    document   YAML text -> plain values, each with its line
    units      spans, sizes, percentages
    language   the keys, their types and defaults; the JSON Schema is made from it
    checks     contradictions between keys that are each well formed
    release    what is language but not in this release
    intent     the whole cluster, every default filled in
    kinds      what a kind of flow looks like on the wire
    desired    what one host must hold of it
"""
