//! Where endpoints and their addresses come from.
