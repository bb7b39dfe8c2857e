"""Models whose circuit is known before any search: constructed weight by
weight, or trained to a prescribed circuit.
"""
