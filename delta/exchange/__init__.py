"""The sync exchange: messages, and a session as a pure state machine."""
