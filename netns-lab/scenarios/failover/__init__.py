"""`make failover`: everything that can break, one trouble after the other, on real kernels.

`catalogue` says what there is, `trial` runs one of them, `aftermath` looks at what became of the
cluster, `page` writes docs/failover.md's table.
"""
