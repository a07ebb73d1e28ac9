"""Phrase credit in trainers that are not ours. Each module needs the library it is named after."""
