//! Names, asked for at a fixed rate from within a sandbox.

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

/// Questions a second.
const RATE: u32 = 10_000;
/// Questions are sent in so many bursts a second.
const BURSTS: u32 = 1000;

/// What the asker found.
pub(super) struct Figures {
    pub(super) asked: u64,
    pub(super) answered: u64,
    pub(super) p50: Duration,
    pub(super) p99: Duration,
}

/// The process that asks, in its sandbox.
#[derive(Args)]
pub(crate) struct Asking {
    server: SocketAddr,
    seconds: u16,
    names: u16,
}

/// Runs the asker in the sandbox `s1`.
pub(super) fn measure(seconds: u16, names: u16) -> Result<Figures> {
    let output = Command::new("ip")
        .args(["netns", "exec", "s1"])
        .arg(std::env::current_exe()?)
        .args(["ask-names", "10.89.0.1:53", &seconds.to_string(), &names.to_string()])
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("asking for names")?;
    ensure!(output.status.success(), "asking for names ended with {}", output.status);
    let text = String::from_utf8(output.stdout)?;
    let numbers = text.split_whitespace().map(str::parse).collect::<Result<Vec<u64>, _>>()?;
    let [asked, answered, p50, p99] = numbers[..] else { anyhow::bail!("the asker said {text:?}") };
    Ok(Figures { asked, answered, p50: Duration::from_nanos(p50), p99: Duration::from_nanos(p99) })
}

/// Asks, and prints how many were asked and answered, and how long the median and the 99th percentile took.
#[allow(clippy::print_stdout)] // read by the process above
pub(crate) fn ask(options: &Asking) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(options.server)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let origin = Instant::now();
    let sent: Arc<Vec<AtomicU64>> = Arc::new((0..=u16::MAX).map(|_| AtomicU64::new(0)).collect());
    let (receiving, times) = (socket.try_clone()?, Arc::clone(&sent));
    let receiver = std::thread::spawn(move || {
        let (mut buffer, mut waited) = ([0; 512], Vec::new());
        while let Ok(length) = receiving.recv(&mut buffer) {
            let now = u64::try_from(origin.elapsed().as_nanos()).unwrap_or(u64::MAX);
            // An answer without error that has a record.
            if length > 12 && buffer[3] & 0xf == 0 && buffer[7] > 0 {
                let id = usize::from(u16::from_be_bytes([buffer[0], buffer[1]]));
                waited.push(now.saturating_sub(times[id].load(Ordering::Relaxed)));
            }
        }
        waited
    });
    let questions: Vec<Vec<u8>> = (0..options.names).map(|n| question(&format!("s{n}"))).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let asked = runtime.block_on(async {
        let mut tick = tokio::time::interval(Duration::from_secs(1) / BURSTS);
        let mut asked = 0u32;
        for _ in 0..u32::from(options.seconds) * BURSTS {
            tick.tick().await;
            for _ in 0..RATE / BURSTS {
                let id = u16::try_from(asked & 0xffff).unwrap_or_default();
                let mut question = questions[asked as usize % questions.len()].clone();
                question[..2].copy_from_slice(&id.to_be_bytes());
                let now = u64::try_from(origin.elapsed().as_nanos()).unwrap_or(u64::MAX);
                sent[usize::from(id)].store(now, Ordering::Relaxed);
                socket.send(&question)?;
                asked += 1;
            }
        }
        std::io::Result::Ok(asked)
    })?;
    let mut waited = receiver.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))?;
    waited.sort_unstable();
    let at = |percent: usize| waited.get(waited.len() * percent / 100).copied().unwrap_or_default();
    println!("{asked} {} {} {}", waited.len(), at(50), at(99));
    Ok(())
}

/// A question for the IPv4 address of a name of one label.
fn question(name: &str) -> Vec<u8> {
    let mut bytes = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    bytes.push(u8::try_from(name.len()).unwrap_or_default());
    bytes.extend(name.as_bytes());
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}
