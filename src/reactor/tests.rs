#![cfg(target_os = "linux")]

use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::http::socket::Socket;

/// Runs `test` on a thread whose runtime has a reactor. `test` itself is a task of the runtime.
fn with_reactor<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::spawn(coop::unconstrained(Reactor::start().unwrap()));
        test.await
    })
}

/// Runs a task of the reactor and waits for what it gives; `None` if it ended before.
async fn ran<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> Option<T> {
    let (done, waits) = oneshot::channel();
    spawn(Box::pin(async move { drop(done.send(task.await)) }));
    waits.await.ok()
}

/// Two ends of a connection: the first as a worker has it, the other as anybody's.
async fn pair() -> (Socket, TcpStream) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (Socket::taken(near.unwrap()).unwrap(), far.unwrap().0)
}

#[test]
fn tasks_talk_through_their_sockets_and_through_channels() {
    with_reactor(async {
        let (sum, mut sums) = mpsc::channel(4);
        for number in 0..50_u32 {
            let (mut near, mut far) = pair().await;
            let sum = sum.clone();
            spawn(Box::pin(async move {
                let mut bytes = [0; 4];
                for _ in 0..20 {
                    near.read_exact(&mut bytes).await.unwrap();
                    near.write_all(&bytes).await.unwrap();
                }
                sum.send(u32::from_be_bytes(bytes)).await.unwrap();
            }));
            tokio::spawn(async move {
                for _ in 0..20 {
                    far.write_all(&number.to_be_bytes()).await.unwrap();
                    assert_eq!(far.read_u32().await.unwrap(), number);
                }
            });
        }
        drop(sum);
        let mut total = 0;
        while let Some(number) = sums.recv().await {
            total += number;
        }
        assert_eq!(total, (0..50).sum::<u32>());
    });
}

#[test]
fn timers_ring_in_tasks() {
    with_reactor(async {
        let slept = ran(async { tokio::time::timeout(Duration::from_millis(1), std::future::pending::<()>()).await.is_err() });
        assert_eq!(slept.await, Some(true));
    });
}

#[test]
fn a_task_is_woken_by_another_thread() {
    with_reactor(async {
        for _ in 0..50 {
            let (word, waits) = oneshot::channel();
            let thread = std::thread::spawn(move || word.send(7).unwrap());
            assert_eq!(ran(async { waits.await.unwrap() }).await, Some(7));
            thread.join().unwrap();
        }
    });
}

#[test]
fn a_panic_ends_its_own_task_alone() {
    with_reactor(async {
        let (mut near, mut far) = pair().await;
        let other = async move {
            let mut byte = [0];
            near.read_exact(&mut byte).await.unwrap();
            byte
        };
        let broken = ran(async { assert_eq!(1, 2, "as it should be") });
        let (broken, other, ()) = tokio::join!(broken, ran(other), async { far.write_all(b"x").await.unwrap() });
        assert_eq!((broken, other), (None, Some([b'x'])));
    });
}

#[test]
fn tasks_end_with_their_reactor_and_sockets_live_on() {
    struct Ends(Arc<AtomicUsize>);
    impl Drop for Ends {
        fn drop(&mut self) {
            self.0.fetch_add(1, SeqCst);
            // Where there is no reactor any more.
            let waker = Waker::noop();
            assert!(poll_turn(&mut Context::from_waker(waker)).is_ready());
        }
    }
    let ended = Arc::new(AtomicUsize::new(0));
    let (socket, mut far) = with_reactor(async {
        let (mut held, _far) = pair().await;
        let (left, far) = pair().await;
        for ends in [Ends(Arc::clone(&ended)), Ends(Arc::clone(&ended))] {
            spawn(Box::pin(async move {
                let _ends = ends;
                std::future::pending::<()>().await;
            }));
        }
        let ends = Ends(Arc::clone(&ended));
        spawn(Box::pin(async move {
            let _ends = ends;
            held.read_u8().await.ok();
            unreachable!("nothing comes");
        }));
        tokio::task::yield_now().await;
        (left, far.into_std().unwrap())
    });
    assert_eq!(ended.load(SeqCst), 3);
    drop(socket);
    far.set_nonblocking(false).unwrap();
    assert_eq!(std::io::Read::read(&mut far, &mut [0; 1]).unwrap(), 0, "it was closed");
}

#[test]
fn a_socket_stays_with_its_thread() {
    let (mut near, _far) = with_reactor(pair());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        assert!(!near.is_quiet());
        assert_eq!(near.read_u8().await.unwrap_err().to_string(), "a connection stays with its worker");
    });
}

#[test]
fn what_was_written_arrives_in_order_however_it_was_written() {
    with_reactor(async {
        let (mut near, mut far) = pair().await;
        let writing = ran(async move {
            let mut sent = Vec::new();
            for (round, length) in [1, 300, 5_000, 7, 4_096, 70_000, 2].into_iter().cycle().take(70).enumerate() {
                let bytes = vec![u8::try_from(round).unwrap(); length];
                near.write_all(&bytes).await.unwrap();
                sent.extend(bytes);
            }
            near.shutdown().await.unwrap();
            sent
        });
        let mut got = Vec::new();
        let (sent, read) = tokio::join!(writing, far.read_to_end(&mut got));
        read.unwrap();
        assert!(sent.unwrap() == got);
    });
}

/// Writes as much as the system takes.
fn fill(socket: &mut Socket) -> usize {
    let (mut cx, mut sent) = (Context::from_waker(Waker::noop()), 0);
    while let Poll::Ready(written) = Pin::new(&mut *socket).poll_write(&mut cx, &[1; 1 << 20]) {
        sent += written.unwrap();
    }
    sent
}

#[test]
fn the_last_words_of_a_closed_socket_arrive_though_there_was_no_room_for_them() {
    with_reactor(async {
        let (mut near, mut far) = pair().await;
        let writing = ran(async move {
            // The system takes no more after this...
            let sent = fill(&mut near);
            // ... though the reactor believes that it does.
            near.believe_writable();
            near.write_all(&[2; 100]).await.unwrap();
            sent + 100
        });
        let sent = writing.await.unwrap();
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.unwrap();
        assert_eq!(got.len(), sent);
        assert!(got.ends_with(&[2; 100]));
    });
}

#[test]
fn a_write_that_the_system_refuses_is_told_to_the_reader_and_counted() {
    with_reactor(async {
        let (mut near, far) = pair().await;
        near.shutdown().await.unwrap();
        let told = ran(async move {
            near.write_all(&[1; 50]).await.unwrap();
            let error = near.read_u8().await.unwrap_err();
            (error.kind(), near.lost(), near.write_all(&[1]).await.is_err())
        });
        assert_eq!(told.await, Some((io::ErrorKind::BrokenPipe, 50, true)));
        drop(far);
    });
}

#[test]
fn what_a_task_was_woken_for_waits_until_it_asks_for_it() {
    with_reactor(async {
        let (mut near, mut far) = pair().await;
        let (woken, hears) = oneshot::channel();
        let reading = ran(async move {
            // It waits to be told, and then has other things to do.
            let told = poll_fn(|cx| match Pin::new(&mut near).poll_read(cx, &mut ReadBuf::new(&mut [])) {
                Poll::Ready(_) => unreachable!("nothing has come"),
                Poll::Pending => Poll::Ready(cx.waker().clone()),
            });
            drop(told.await);
            woken.send(()).unwrap();
            let mut turns = 0;
            poll_fn(|_| {
                turns += 1;
                if turns < 2 { Poll::Pending } else { Poll::Ready(()) }
            })
            .await;
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
            assert!(!near.is_quiet(), "and its first byte is gone with that");
            let mut all = Vec::new();
            near.read_to_end(&mut all).await.unwrap();
            all
        });
        let writing = async {
            hears.await.unwrap();
            far.write_all(b"abcdef").await.unwrap();
            far.shutdown().await.unwrap();
        };
        let (read, ()) = tokio::join!(reading, writing);
        assert_eq!(read.unwrap(), b"bcdef");
    });
}

#[test]
fn a_reset_that_only_a_held_write_has_met_is_no_end() {
    with_reactor(async {
        let (mut near, far) = pair().await;
        let told = ran(async move {
            socket2::SockRef::from(&far).set_linger(Some(Duration::ZERO)).unwrap();
            drop(far);
            // The reactor has not heard of it yet.
            near.write_all(b"held").await.unwrap();
            let mut all = Vec::new();
            near.read_to_end(&mut all).await.unwrap_err().kind()
        });
        assert!(matches!(told.await, Some(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)));
    });
}

#[test]
fn timers_ring_while_tasks_wake_themselves() {
    with_reactor(async {
        let over = Arc::new(AtomicUsize::new(0));
        for _ in 0..300 {
            let over = Arc::clone(&over);
            spawn(Box::pin(poll_fn(move |cx| {
                cx.waker().wake_by_ref();
                if over.load(SeqCst) == 0 { Poll::Pending } else { Poll::Ready(()) }
            })));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        let (mut near, mut far) = pair().await;
        let read = ran(async move { near.read_u8().await.unwrap() });
        let (read, ()) = tokio::join!(read, async { far.write_all(b"z").await.unwrap() });
        over.store(1, SeqCst);
        assert_eq!(read, Some(b'z'));
    });
}

#[test]
fn long_and_short_messages_in_turn_arrive_whole() {
    with_reactor(async {
        let (mut near, mut far) = pair().await;
        let lengths = [1, 2_047, 2_048, 2_049, 100_000, 3, 5_000, 1];
        let echoing = ran(async move {
            for length in lengths {
                let mut message = vec![0; length];
                near.read_exact(&mut message).await.unwrap();
                near.write_all(&message).await.unwrap();
            }
        });
        let asking = async {
            for length in lengths {
                let sent: Vec<u8> = (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect();
                far.write_all(&sent).await.unwrap();
                let mut got = vec![0; length];
                far.read_exact(&mut got).await.unwrap();
                assert!(got == sent, "{length} bytes");
            }
        };
        assert_eq!(tokio::join!(echoing, asking).0, Some(()));
    });
}

#[test]
fn a_reset_is_told_to_who_reads() {
    with_reactor(async {
        let (mut near, far) = pair().await;
        let reading = ran(async move { near.read_u8().await.unwrap_err().kind() });
        let resetting = async {
            tokio::task::yield_now().await;
            socket2::SockRef::from(&far).set_linger(Some(Duration::ZERO)).unwrap();
            drop(far);
        };
        assert_eq!(tokio::join!(reading, resetting).0, Some(io::ErrorKind::ConnectionReset));
    });
}

#[test]
fn who_always_finds_something_leaves_others_their_turn() {
    with_reactor(async {
        let (mut near, mut far) = pair().await;
        far.write_all(&[0; 10_000]).await.unwrap();
        let reads = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&reads);
        let greedy = ran(async move {
            for _ in 0..10_000 {
                near.read_u8().await.unwrap();
                counted.fetch_add(1, SeqCst);
            }
        });
        let seen = Arc::clone(&reads);
        let other = async move {
            let mut turns = Vec::new();
            while turns.last() != Some(&10_000) {
                turns.push(seen.load(SeqCst));
                tokio::task::yield_now().await;
            }
            turns
        };
        let (_, turns) = tokio::join!(greedy, ran(other));
        assert!(turns.unwrap().len() > 10, "others have had their turn");
    });
}

#[test]
fn what_happens_to_a_closed_socket_is_not_told_to_the_next_in_its_place() {
    with_reactor(async {
        let (first, mut far) = pair().await;
        far.write_all(b"x").await.unwrap();
        // What came is under way when it is closed.
        drop(first);
        let (mut second, _far) = pair().await;
        let quiet = ran(async move {
            tokio::task::yield_now().await;
            second.is_quiet()
        });
        assert_eq!(quiet.await, Some(true));
    });
}

#[test]
fn without_a_reactor_tasks_are_the_runtimes() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let given = runtime.block_on(ran(async {
        let (mut near, mut far) = pair().await;
        far.write_all(b"y").await.unwrap();
        near.read_u8().await.unwrap()
    }));
    assert_eq!(given, Some(b'y'));
}

#[test]
fn a_thread_has_one_reactor() {
    with_reactor(async { assert!(Reactor::start().is_err()) });
    with_reactor(async { assert!(Reactor::start().is_err(), "and another one after it") });
}
