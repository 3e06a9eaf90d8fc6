"""ACTS: one file a deed, in the order of the flow; knows only ports and policies."""
