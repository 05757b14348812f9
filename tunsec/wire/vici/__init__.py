"""VICI, charon's control protocol, as dictionaries (strongSwan, src/libcharon/plugins/vici).

A message is a dictionary of bytes, lists of bytes and dictionaries; the `vici` package turns it
into packets. Here dictionaries become the types of model.ike_sa and those of model.ike become
dictionaries. Requests are strict: what charon would misread raises Malformed before it is sent.
Answers are strict in what is used and blind to the rest: charon adds keys with every release, so
unknown keys are passed over, on purpose. No text is taken apart.

    values       reading typed values of a dictionary, with the path in every error
    requests     connections, credentials and commands
    answers      IKE_SAs, connections, algorithms, version, statistics
    events       what happens, unasked
"""
