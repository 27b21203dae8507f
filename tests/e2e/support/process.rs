//! The program as it is installed, for what only a process has: its output, its watch on files, its environment.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};

use super::{Answer, Raw, eventually};

/// The binary, with everything it writes in files.
pub struct Process {
    child: Child,
    pub dir: tempfile::TempDir,
    ports: [u16; 2],
}

impl Process {
    /// Starts it with `yaml`, in which `@LISTEN` and `@ADMIN` are free ports.
    pub fn start(dir: tempfile::TempDir, yaml: &str, env: &[(&str, &str)]) -> Self {
        let ports = free_ports();
        let mut process = Self { child: Self::spawn(&dir, &placed(yaml, ports), env), dir, ports };
        // What was free may have been given to another socket meanwhile.
        for _ in 0..5 {
            if process.listens() {
                return process;
            }
            process.ports = free_ports();
            process.child = Self::spawn(&process.dir, &placed(yaml, process.ports), env);
        }
        panic!("{}", process.output());
    }

    fn spawn(dir: &tempfile::TempDir, yaml: &str, env: &[(&str, &str)]) -> Child {
        std::fs::write(dir.path().join("gateway.yaml"), yaml).unwrap();
        let file = |name: &str| Stdio::from(std::fs::File::create(dir.path().join(name)).unwrap());
        // As many descriptors as may be, unless a test wants few: the usual 1024 are few for a proxy.
        Command::new("sh")
            .args([
                "-c",
                "ulimit -n \"${DESCRIPTORS:-$(ulimit -Hn)}\"; exec \"$0\" serve --config gateway.yaml",
                env!("CARGO_BIN_EXE_tollgate"),
            ])
            .current_dir(dir.path())
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(file("out"))
            .stderr(file("err"))
            .spawn()
            .unwrap()
    }

    /// Waits until it listens; `false` if somebody else does where it should.
    fn listens(&mut self) -> bool {
        eventually("it listens", || {
            if self.child.try_wait().unwrap().is_some() {
                assert!(self.output().contains("is already in use"), "{}", self.output());
                return Some(false);
            }
            // From another address: a socket that the kernel gives this very port would connect to itself, and take the port away.
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.bind(&SocketAddr::from(([127, 0, 0, 2], 0)).into()).unwrap();
            socket.connect(&self.address(0).into()).ok().map(|()| true)
        })
    }

    /// Starts it anew where it was.
    pub fn start_again(&mut self) {
        let yaml = std::fs::read_to_string(self.dir.path().join("gateway.yaml")).unwrap();
        self.child = Self::spawn(&self.dir, &yaml, &[]);
        assert!(self.listens(), "{}", self.output());
    }

    /// Saves another configuration as editors do: a new file takes the name.
    pub fn save(&self, yaml: &str) {
        std::fs::write(self.dir.path().join("new"), placed(yaml, self.ports)).unwrap();
        std::fs::rename(self.dir.path().join("new"), self.dir.path().join("gateway.yaml")).unwrap();
    }

    /// Sends it a signal: `TERM`, `KILL`, …
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits for its end: its exit code, or `None` if a signal ended it.
    pub fn ended(&mut self) -> Option<i32> {
        eventually("the process ends", || self.child.try_wait().unwrap()).code()
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// Lets it have only so many descriptors from now on.
    pub fn limit_descriptors(&self, most: usize) {
        let sent = Command::new("prlimit").args([format!("--pid={}", self.child.id()), format!("--nofile={most}:")]).status().unwrap();
        assert!(sent.success());
    }

    /// A figure of its memory in KiB: `VmRSS` is what it has now, `VmHWM` the most it ever had.
    pub fn memory(&self, figure: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(figure)?.strip_prefix(':')).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// The value of a series of `/metrics`; 0 where there is none.
    pub fn metric(&self, series: &str) -> f64 {
        let text = self.ask(1, "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").text();
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Where its listener or, as 1, its admin listener is.
    pub fn address(&self, port: usize) -> SocketAddr {
        ([127, 0, 0, 1], self.ports[port]).into()
    }
    #[track_caller]
    pub fn ask(&self, port: usize, bytes: &str) -> Answer {
        Raw::connect(self.address(port)).ask(bytes)
    }
    /// Waits for an event (of `log.format: json`) with these words.
    #[track_caller]
    pub fn said(&self, words: &str) -> serde_json::Value {
        eventually(words, || {
            let text = self.output();
            let mut events = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
            events.find(|event| event["message"].as_str().is_some_and(|message| message.contains(words)))
        })
    }
    /// Everything it has written.
    pub fn output(&self) -> String {
        ["out", "err", "access.log"].map(|name| std::fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()).join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself; the test has said so then.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_ports() -> [u16; 2] {
    let free = [0, 0].map(|_: u8| TcpListener::bind("127.0.0.1:0").unwrap());
    free.map(|listener| listener.local_addr().unwrap().port())
}

fn placed(yaml: &str, ports: [u16; 2]) -> String {
    yaml.replace("@LISTEN", &ports[0].to_string()).replace("@ADMIN", &ports[1].to_string())
}
