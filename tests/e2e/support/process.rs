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
        let free = [0, 0].map(|_: u8| TcpListener::bind("127.0.0.1:0").unwrap());
        let ports = [0, 1].map(|n: usize| free[n].local_addr().unwrap().port());
        drop(free);
        let yaml = yaml.replace("@LISTEN", &ports[0].to_string()).replace("@ADMIN", &ports[1].to_string());
        std::fs::write(dir.path().join("gateway.yaml"), yaml).unwrap();
        let file = |name: &str| Stdio::from(std::fs::File::create(dir.path().join(name)).unwrap());
        let child = Command::new(env!("CARGO_BIN_EXE_tollgate"))
            .args(["serve", "--config", "gateway.yaml"])
            .current_dir(dir.path())
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(file("out"))
            .stderr(file("err"))
            .spawn()
            .unwrap();
        let mut process = Self { child, dir, ports };
        eventually("it listens", || {
            assert!(process.child.try_wait().unwrap().is_none(), "{}", process.output());
            std::net::TcpStream::connect(("127.0.0.1", ports[0])).ok()
        });
        process
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
