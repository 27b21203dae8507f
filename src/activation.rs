//! Sockets passed by the service manager (systemd socket activation, `sd_listen_fds(3)`).

use std::net::TcpListener;
use std::os::fd::FromRawFd;

/// First descriptor that is passed.
const FIRST: i32 = 3;
/// More than anybody passes; a broken variable must not make us close the whole table.
const MOST: i32 = 64;

/// The listening TCP sockets that were passed to this process, if any. Call it once, before any thread is started.
pub fn sockets() -> Vec<TcpListener> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<i32>().ok());
    if number("LISTEN_PID") != i32::try_from(std::process::id()).ok() {
        return Vec::new();
    }
    let count = number("LISTEN_FDS").unwrap_or(0).clamp(0, MOST);
    (FIRST..FIRST + count)
        .map(|descriptor| {
            // SAFETY: the service manager gave these descriptors to this process (LISTEN_PID is ours), nothing else owns them,
            // and this function is called once.
            #[expect(unsafe_code, reason = "there is no safe way to take over an inherited descriptor")]
            unsafe {
                TcpListener::from_raw_fd(descriptor)
            }
        })
        .filter(|socket| socket.local_addr().is_ok() && socket.set_nonblocking(true).is_ok())
        .collect()
}
