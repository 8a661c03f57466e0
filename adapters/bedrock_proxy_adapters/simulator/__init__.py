"""
A fake Bedrock Runtime on loopback.
"""
