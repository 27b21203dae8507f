//! Notices changes of the files a configuration was read from.
