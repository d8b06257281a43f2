//! Hints from containerd's event stream and from the watched processes.
//!
//! containerd sends nothing on a new subscription before its first event, so that nobody knows when it holds. A
//! marker of our own, published until it comes back, tells: from then on nothing is missed, and a list made after it
//! is complete.

use std::sync::Arc;
use std::time::Duration;

use containerd_client::events::{ContainerDelete, TaskDelete, TaskExit, TaskOom, TaskPaused, TaskResumed};
use containerd_client::services::v1::{ImageCreate, ImageDelete, ImageUpdate, PublishRequest, SubscribeRequest};
use containerd_client::types::Envelope;
use tokio::sync::{broadcast, mpsc};
use tonic::{Status, Streaming};

use super::RuntimeEvent;
use super::containerd::Shared;
use crate::ids::ContainerId;

/// Hints a reader may be behind before it gets one [`RuntimeEvent::Resync`] instead.
const QUEUE: usize = 256;
/// How often the marker is repeated: the first may be published before the subscription holds.
const MARKER_EVERY: Duration = Duration::from_millis(20);
/// Wait before the first and the longest before any further attempt to connect. A restart of containerd takes some
/// 0.3 s.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// See [`super::Runtime::events`].
pub(super) fn events(shared: Arc<Shared>) -> mpsc::Receiver<RuntimeEvent> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let exits = shared.exits.subscribe();
    tokio::spawn(async move {
        let mut feed = Feed { shared, exits, reader: Reader { sender, missed: false } };
        let closed = feed.reader.sender.clone();
        // Dropping the feed at any point loses nothing: its reader is gone.
        tokio::select! {
            () = feed.run() => {}
            () = closed.closed() => {}
        }
    });
    receiver
}

struct Feed {
    shared: Arc<Shared>,
    exits: broadcast::Receiver<ContainerId>,
    reader: Reader,
}

/// The reader's queue.
struct Reader {
    sender: mpsc::Sender<RuntimeEvent>,
    /// The queue was full: the reader must look at everything once there is room.
    missed: bool,
}

impl Reader {
    fn tell(&mut self, event: RuntimeEvent) {
        if self.missed || self.sender.try_send(event).is_err() {
            self.missed = true;
        }
    }

    /// Waits for room for the word that something was missed; forever if nothing was.
    async fn catch_up(&mut self) {
        if !self.missed {
            std::future::pending::<()>().await;
        }
        match self.sender.reserve().await {
            Ok(permit) => permit.send(RuntimeEvent::Resync),
            // The reader is gone, and with it soon this task: not a reason to try again at once.
            Err(_closed) => std::future::pending().await,
        }
        self.missed = false;
    }
}

impl Feed {
    async fn run(&mut self) {
        let mut wait = FIRST_WAIT;
        loop {
            match self.subscribe().await {
                Ok(mut stream) => {
                    wait = FIRST_WAIT;
                    self.reader.tell(RuntimeEvent::Resync);
                    let end = self.follow(&mut stream).await;
                    tracing::info!(reason = %end, "containerd's event stream ended; connecting again");
                    self.reader.tell(RuntimeEvent::Lost { reason: end.to_string() });
                }
                Err(status) => {
                    tracing::debug!(reason = status.message(), "containerd's events cannot be had yet");
                    if wait == FIRST_WAIT {
                        self.reader.tell(RuntimeEvent::Lost { reason: status.message().to_owned() });
                    }
                }
            }
            self.pause(wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    /// Watched processes end also while containerd is away.
    async fn pause(&mut self, wait: Duration) {
        let sleep = tokio::time::sleep(wait);
        tokio::pin!(sleep);
        loop {
            // All arms are cancel-safe: receiving and reserving lose nothing.
            tokio::select! {
                () = &mut sleep => return,
                id = self.exits.recv() => exited(&mut self.reader, id).await,
                () = self.reader.catch_up() => {}
            }
        }
    }

    /// A stream that surely gets everything from now on.
    async fn subscribe(&mut self) -> Result<Streaming<Envelope>, Status> {
        let containerd = self.shared.containerd.clone();
        let namespace = containerd.namespace();
        let topic = format!("/nodelet/{}", uuid::Uuid::new_v4().simple());
        let request = containerd.request(SubscribeRequest {
            filters: vec![
                format!(r#"namespace=="{namespace}",topic~="^/(tasks|containers|images)/""#),
                format!(r#"namespace=="{namespace}",topic=="{topic}""#),
            ],
        });
        let mut client = containerd.events();
        let opening = async {
            let mut stream = client.subscribe(request).await?.into_inner();
            loop {
                match stream.message().await? {
                    Some(envelope) if envelope.topic == topic => return Ok(stream),
                    // Older than the barrier: the list that follows it has it.
                    Some(_) => {}
                    None => return Err(Status::unavailable("the event stream ended")),
                }
            }
        };
        let marking = async {
            let mut publisher = containerd.events();
            let mut ticks = tokio::time::interval(MARKER_EVERY);
            loop {
                ticks.tick().await;
                let event = prost_types::Any { type_url: "nodelet.dev/v1/Marker".to_owned(), value: Vec::new() };
                let marker = PublishRequest { topic: topic.clone(), event: Some(event) };
                publisher.publish(containerd.request(marker)).await?;
            }
        };
        // The second never ends well; when it fails, the daemon is away and so is the stream.
        let marking: std::pin::Pin<&mut (dyn Future<Output = Result<std::convert::Infallible, Status>> + Send)> =
            std::pin::pin!(marking);
        tokio::select! {
            stream = opening => stream,
            failed = marking => match failed { Err(status) => Err(status) },
        }
    }

    /// Passes hints on until the stream ends; returns why.
    async fn follow(&mut self, stream: &mut Streaming<Envelope>) -> String {
        loop {
            // All arms are cancel-safe: reading a message, receiving and reserving lose nothing when dropped.
            let message = tokio::select! {
                message = stream.message() => message,
                id = self.exits.recv() => {
                    exited(&mut self.reader, id).await;
                    continue;
                }
                () = self.reader.catch_up() => continue,
            };
            match message {
                Ok(Some(envelope)) => {
                    if let Some(event) = hint(&envelope) {
                        self.reader.tell(event);
                    }
                }
                Ok(None) => return "closed by the daemon".to_owned(),
                Err(status) => return status.message().to_owned(),
            }
        }
    }
}

/// Tells of the end of a watched process.
async fn exited(reader: &mut Reader, id: Result<ContainerId, broadcast::error::RecvError>) {
    match id {
        Ok(id) => reader.tell(RuntimeEvent::Container { id, topic: "exit".to_owned() }),
        Err(broadcast::error::RecvError::Lagged(_)) => reader.missed = true,
        // Cannot happen while we share the sender; waiting is right if it does.
        Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
    }
}

/// What an event of containerd hints at. Left out: what only our own calls cause (create, start), and programs run
/// in a container.
fn hint(envelope: &Envelope) -> Option<RuntimeEvent> {
    let event = envelope.event.as_ref()?;
    let topic = envelope.topic.as_str();
    let id = match topic {
        "/tasks/exit" => {
            let exit: TaskExit = decode(event)?;
            (exit.id == exit.container_id).then_some(exit.container_id)?
        }
        "/tasks/delete" => {
            let delete: TaskDelete = decode(event)?;
            (delete.id.is_empty() || delete.id == delete.container_id).then_some(delete.container_id)?
        }
        "/tasks/oom" => decode::<TaskOom>(event)?.container_id,
        "/tasks/paused" => decode::<TaskPaused>(event)?.container_id,
        "/tasks/resumed" => decode::<TaskResumed>(event)?.container_id,
        "/containers/delete" => decode::<ContainerDelete>(event)?.id,
        "/images/create" => return Some(RuntimeEvent::Image { name: decode::<ImageCreate>(event)?.name }),
        "/images/update" => return Some(RuntimeEvent::Image { name: decode::<ImageUpdate>(event)?.name }),
        "/images/delete" => return Some(RuntimeEvent::Image { name: decode::<ImageDelete>(event)?.name }),
        _ => return None,
    };
    let topic = topic.rsplit('/').next().unwrap_or(topic).to_owned();
    Some(RuntimeEvent::Container { id: ContainerId::new(id).ok()?, topic })
}

/// The type URL is not compared: containerd uses bare names where the standard wants a prefix.
fn decode<T: prost::Message + Default>(event: &prost_types::Any) -> Option<T> {
    T::decode(event.value.as_slice()).ok()
}
