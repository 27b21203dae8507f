//! Connections to endpoints, kept per worker.
