"""
One reader per Bedrock model family: upstream JSON in, parts out.
"""
