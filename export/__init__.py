"""The workstation side of ReStNet Runtime: trained anchors in, one bundle out. Needs the extra `[export]` (torch)."""
