"""What goes around any method: outliers kept exactly, entropy coding, a scale for error feedback.

A wrapped message is the method's own message of what the wrappers leave to it, with a key ``wrap``
that says what they add. `parts` is that key, `clamp`, `payload` and `feedback` are the wrappers,
`around` applies them to what a backend does.
"""
