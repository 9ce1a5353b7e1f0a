"""Every quantizer behind one contract: what it promises, what travels, how to encode and decode.

`contract` says what a scheme is, `registry` finds them. Each has a folder of its own.
"""
