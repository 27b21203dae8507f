//! Connecting to a name with several addresses: happy eyeballs (RFC 8305).

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::net::TcpStream;

/// Wait before the next address is tried beside the ones under way (RFC 8305, 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

type Attempts = Vec<Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>>;

/// Tries addresses in order, the next one after 250 ms or a failure, and takes the first that connects (RFC 8305).
pub(super) async fn happy_eyeballs(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    match addresses {
        [] => return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address")),
        [only] => return TcpStream::connect(*only).await,
        _ => {}
    }
    let addresses = interleaved(addresses);
    let mut waiting = addresses.iter();
    let mut attempts: Attempts = Vec::new();
    let mut last = None;
    loop {
        let more = match waiting.next() {
            Some(address) => {
                attempts.push(Box::pin(TcpStream::connect(*address)));
                waiting.len() > 0
            }
            None => false,
        };
        if attempts.is_empty() {
            return Err(last.unwrap_or_else(|| io::ErrorKind::NotConnected.into()));
        }
        let raced = first_of(&mut attempts);
        let result = if more {
            match tokio::time::timeout(ATTEMPT_DELAY, raced).await {
                Ok(result) => result,
                Err(_) => continue,
            }
        } else {
            raced.await
        };
        match result {
            Ok(tcp) => return Ok(tcp),
            Err(error) => last = Some(error),
        }
    }
}

/// The addresses with their families taking turns, so that a family that does not work delays the other by one attempt only (RFC 8305, 4).
fn interleaved(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (mut first, mut second): (VecDeque<SocketAddr>, VecDeque<_>) =
        addresses.iter().copied().partition(|address: &SocketAddr| address.is_ipv6() == first_is_v6);
    let mut mixed = Vec::with_capacity(addresses.len());
    while !(first.is_empty() && second.is_empty()) {
        mixed.extend(first.pop_front());
        mixed.extend(second.pop_front());
    }
    mixed
}

/// The first attempt to end; it is taken out.
async fn first_of(attempts: &mut Attempts) -> io::Result<TcpStream> {
    std::future::poll_fn(|cx| {
        for index in 0..attempts.len() {
            if let Poll::Ready(result) = attempts[index].as_mut().poll(cx) {
                drop(attempts.swap_remove(index));
                return Poll::Ready(result);
            }
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }
    #[test]
    fn families_of_addresses_take_turns() {
        let parse = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let sorted = parse(&["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80", "[::1]:80", "[::2]:80"]);
        assert_eq!(interleaved(&sorted), parse(&["10.0.0.1:80", "[::1]:80", "10.0.0.2:80", "[::2]:80", "10.0.0.3:80"]));
        assert_eq!(interleaved(&sorted[..2]), sorted[..2]);
    }

    #[test]
    fn a_refusing_address_does_not_hide_a_good_one() {
        run(async {
            let dead = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let refusing = dead.local_addr().unwrap();
            drop(dead);
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let good = listener.local_addr().unwrap();
            let tcp = happy_eyeballs(&[refusing, good]).await.unwrap();
            assert_eq!(tcp.peer_addr().unwrap(), good);
        });
    }

    #[test]
    fn a_silent_address_does_not_hold_a_good_one_up() {
        use socket2::{Domain, Socket, Type};
        // A listener whose queue is full: the kernel neither takes nor refuses what comes then.
        let socket = || Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let full = socket();
        full.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        full.listen(0).unwrap();
        let silent = full.local_addr().unwrap();
        let fillers: Vec<Socket> = (0..4).map(|_| socket()).collect();
        for filler in &fillers {
            filler.set_nonblocking(true).unwrap();
            // "In progress" is what it says.
            filler.connect(&silent).ok();
        }
        run(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let good = listener.local_addr().unwrap();
            let addresses = [silent.as_socket().unwrap(), good];
            let tcp = tokio::time::timeout(Duration::from_secs(5), happy_eyeballs(&addresses))
                .await
                .expect("does not wait for the silent one")
                .unwrap();
            assert_eq!(tcp.peer_addr().unwrap(), good);
        });
    }

    #[test]
    fn all_refusing_is_an_error() {
        run(async {
            let dead = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let refusing = dead.local_addr().unwrap();
            drop(dead);
            let error = happy_eyeballs(&[refusing, refusing]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        });
    }
}
