//! Reading a log for a client.
