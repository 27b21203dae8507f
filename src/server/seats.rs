//! The workers' seats: where each is given connections, and how many it has.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tokio::sync::mpsc;

use crate::server::acceptor::Door;
use crate::server::listener::Listener;
use crate::server::worker::Open;

/// A worker may have a sixteenth more than its share before it gives connections away: nothing below sixteen each, and where many
/// come and go it spares most of them the way to another thread.
const SLACK: usize = 16;

/// A connection on its way to a worker.
pub struct Accepted {
    /// The socket, non-blocking.
    pub socket: TcpStream,
    /// Where it comes from.
    pub peer: SocketAddr,
    /// Where it came in.
    pub listener: Arc<Listener>,
    /// Counts it.
    pub open: Open,
}

/// What a worker is told to do.
pub enum Order {
    /// Serve a connection.
    Serve(Accepted),
    /// Accept connections.
    Accept(Door),
}

/// Who has accepted a connection.
#[derive(Clone, Copy, Debug)]
pub enum Taker {
    /// The worker that asks.
    Worker(usize),
    /// The acceptor.
    Acceptor,
    /// The acceptor, since this worker has not come to it.
    InsteadOf(usize),
}

/// One seat for each worker.
pub struct Seats(Box<[Seat]>);

/// On cache lines of its own: each worker writes its count with every connection.
#[repr(align(128))]
struct Seat {
    load: AtomicUsize,
    orders: mpsc::UnboundedSender<Order>,
}

impl Seats {
    /// Seats for `count` workers, and where each finds what it is told.
    pub fn new(count: usize) -> (Self, Vec<mpsc::UnboundedReceiver<Order>>) {
        let (seats, orders) = (0..count)
            .map(|_| {
                let (orders, receiver) = mpsc::unbounded_channel();
                (Seat { load: AtomicUsize::new(0), orders }, receiver)
            })
            .unzip::<_, _, Vec<_>, Vec<_>>();
        (Self(seats.into()), orders)
    }

    /// How many workers there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// A connection of `worker` begins.
    pub fn sit(&self, worker: usize) {
        if let Some(seat) = self.0.get(worker) {
            seat.load.fetch_add(1, Relaxed);
        }
    }

    /// A connection of `worker` has ended.
    pub fn rise(&self, worker: usize) {
        if let Some(seat) = self.0.get(worker) {
            seat.load.fetch_sub(1, Relaxed);
        }
    }

    /// Tells `worker` what to do. Fails only when the worker has stopped, at the end of a shutdown: the order is dropped.
    pub fn order(&self, worker: usize, order: Order) {
        if let Some(seat) = self.0.get(worker) {
            let _ = seat.orders.send(order);
        }
    }

    /// The worker for one more connection where `open` are open in all: the one that has accepted it, as long as it has not more than its
    /// share, else the one with the fewest. Looks at the others' counts only in the latter case.
    pub fn choose(&self, taker: Taker, open: usize) -> usize {
        let load = |worker: usize| self.0.get(worker).map_or(usize::MAX, |seat| seat.load.load(Relaxed));
        let share = open / self.count().max(1);
        let not = match taker {
            Taker::Worker(home) if load(home) <= share + share / SLACK => return home,
            Taker::Worker(_) | Taker::Acceptor => None,
            Taker::InsteadOf(stuck) => Some(stuck),
        };
        let others = (0..self.count()).filter(|&worker| Some(worker) != not);
        others.min_by_key(|&worker| load(worker)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seats(loads: &[usize]) -> Seats {
        let seats = Seats::new(loads.len()).0;
        loads.iter().enumerate().for_each(|(worker, &load)| (0..load).for_each(|_| seats.sit(worker)));
        seats
    }

    fn choose(loads: &[usize], taker: Taker) -> usize {
        seats(loads).choose(taker, loads.iter().sum())
    }

    #[test]
    fn whoever_accepts_a_connection_keeps_it_unless_it_has_more_than_its_share() {
        assert_eq!(choose(&[0, 0], Taker::Worker(1)), 1);
        assert_eq!(choose(&[1, 0], Taker::Worker(0)), 1);
        assert_eq!(choose(&[3, 3, 3], Taker::Worker(2)), 2);
        assert_eq!(choose(&[4, 3, 2], Taker::Worker(0)), 2, "to the one with the fewest");
        assert_eq!(choose(&[33, 31], Taker::Worker(0)), 0, "a little more is worth less than the way");
        assert_eq!(choose(&[35, 29], Taker::Worker(0)), 1);
    }

    #[test]
    fn what_the_acceptor_takes_goes_to_the_worker_with_the_fewest() {
        assert_eq!(choose(&[2, 1, 2], Taker::Acceptor), 1);
        assert_eq!(choose(&[200, 199], Taker::Acceptor), 1);
        assert_eq!(choose(&[0, 7, 8], Taker::InsteadOf(0)), 1, "not back to the worker that is stuck");
    }

    #[test]
    fn connections_that_stay_are_spread_evenly_wherever_they_are_accepted() {
        for (workers, connections) in [(2, 2), (2, 10), (3, 9), (8, 64), (4, 4096)] {
            let seats = seats(&vec![0; workers]);
            for open in 0..connections {
                // The worst that the system can do: one socket gets all of them.
                seats.sit(seats.choose(Taker::Worker(0), open));
            }
            let most = seats.0.iter().map(|seat| seat.load.load(Relaxed)).max().unwrap();
            let share = connections.div_ceil(workers);
            assert!(most <= share + share / SLACK, "{most} of {connections} on one of {workers}");
        }
    }
}
