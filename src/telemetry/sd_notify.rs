//! Notes to the service manager (`sd_notify(3)`): a datagram to the socket that `NOTIFY_SOCKET` names. Without it nothing is sent.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Instant;

/// A state that the service manager wants to know of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Listeners are bound and the first configuration serves.
    Ready,
    /// A reload begins. `Ready` must follow, whatever its result.
    Reloading,
    /// A shutdown begins.
    Stopping,
}

/// Tells the service manager, if there is one.
///
/// # Errors
/// The socket cannot be written to. The service runs on; the caller logs it.
pub fn notify(state: State) -> io::Result<()> {
    match std::env::var_os("NOTIFY_SOCKET") {
        Some(socket) => send(&socket, &message(state)?),
        None => Ok(()),
    }
}

fn message(state: State) -> io::Result<String> {
    Ok(match state {
        State::Ready => "READY=1".to_owned(),
        State::Stopping => "STOPPING=1".to_owned(),
        State::Reloading => format!("RELOADING=1\nMONOTONIC_USEC={}", monotonic_micros()?),
    })
}

/// `CLOCK_MONOTONIC`, which the service manager compares with the moment it asked for the reload.
///
/// The standard library has no accessor for it, but `Instant` is that clock on Linux and its `Debug` form shows seconds and nanoseconds.
/// The test below fails if a release of Rust changes that; reading the clock by a system call would need unsafe code or one more crate.
fn monotonic_micros() -> io::Result<u128> {
    micros_of(&format!("{:?}", Instant::now())).ok_or_else(|| io::Error::other("the monotonic clock cannot be read"))
}

fn micros_of(instant: &str) -> Option<u128> {
    let field = |name: &str| -> Option<u128> {
        let (_, rest) = instant.split_once(name)?;
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    Some(field("tv_sec: ")? * 1_000_000 + field("tv_nsec: ")? / 1_000)
}

fn send(socket: &OsStr, message: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let sent = UnixDatagram::unbound()?.send_to_addr(message.as_bytes(), &address)?;
    if sent == message.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn notes_reach_a_socket_in_the_file_system() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), &message(State::Ready).unwrap()).unwrap();
        assert_eq!(received(&manager), "READY=1");
        send(path.as_os_str(), &message(State::Stopping).unwrap()).unwrap();
        assert_eq!(received(&manager), "STOPPING=1");
    }

    #[test]
    fn notes_reach_an_abstract_socket() {
        let name = format!("tollgate-test-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        send(OsStr::new(&format!("@{name}")), "READY=1").unwrap();
        assert_eq!(received(&manager), "READY=1");
    }

    #[test]
    fn a_reload_carries_the_monotonic_clock() {
        let text = message(State::Reloading).unwrap();
        let micros: u128 = text.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap().parse().unwrap();
        let later = micros_of(&format!("{:?}", Instant::now())).unwrap();
        assert!(micros > 0 && micros <= later && later - micros < 60_000_000);
    }

    #[test]
    fn a_socket_that_is_gone_is_an_error() {
        assert!(send(OsStr::new("/nonexistent/notify"), "READY=1").is_err());
    }
}
