"""
The ways to Bedrock.
"""
