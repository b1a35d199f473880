"""The honest scorecard: what can be said of any set of 3D molecules, whoever made them.

Every attempt is in every denominator: an entry that cannot be read, a judge that crashes or takes
too long and an attempt without an entry are failures with a reason.
"""
