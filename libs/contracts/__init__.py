"""Every message and every subject that crosses a process.

One module per family. Control messages are frozen pydantic models under a tag `name.v1`
(`wire.py`); the two hot messages, TokenStep and JournalBatch, have array codecs of their own.
"""
