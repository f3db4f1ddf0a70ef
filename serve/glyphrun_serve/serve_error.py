"""What goes wrong with a server as a whole; here, so that its smaller processes need not import what builds one."""


class ServeError(RuntimeError):
    """The server cannot be started, reached or given another version; the message says what to do."""
