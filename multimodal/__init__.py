"""Phase 2: text fusion on a frozen detector."""
