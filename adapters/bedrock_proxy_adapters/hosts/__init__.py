"""
Each module binds the flow to one kind of host: two pure translations and a loop.
"""
