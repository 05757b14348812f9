"""`make year`: three hosts live through a year of rekeys, policies, reboots and troubles.

`diary` draws what happens from a seed, `life` lets it happen.
"""
