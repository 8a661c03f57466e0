"""
One module per client protocol: an HTTP request to a call, and a translation back.
"""
