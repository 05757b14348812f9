"""One file per outside thing. No decisions: errors are translated once, at the call."""
