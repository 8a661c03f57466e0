"""
Where customers, tokens, limits and the ledger live.
"""
