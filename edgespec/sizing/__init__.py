"""How large a tree: policies behind one contract, and the rule that sizes by measured cost."""
