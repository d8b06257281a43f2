//! containerd's content store: blobs written as they arrive, continued where they stopped, and held by leases.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use containerd_client::services::v1::{
    AbortRequest, AddResourceRequest, CreateRequest, DeleteRequest, Info, ListResourcesRequest, Resource,
    UpdateRequest, WriteAction, WriteContentRequest, WriteContentResponse,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::manifest::{Descriptor, Digest};
use super::stored;
use crate::containerd::{Containerd, absent_ok, is_already_exists};

/// Bytes in one message to containerd. Each transfer has some eight of them in memory: filled, queued, encoded and in
/// buffers of the connection. Greater ones are not faster.
pub(super) const MESSAGE: usize = 64 << 10;

/// Longest wait for the previous writer of a blob to let go: a connection that broke is noticed by containerd at
/// once, one of another client may take its time.
const LOCK_PATIENCE: Duration = Duration::from_secs(20);

/// A lease is collected after so long even if nobody comes back to it.
const LEASE_LIFE: jiff::SignedDuration = jiff::SignedDuration::from_hours(30 * 24);

/// Label of a lease: the reference that it was made for.
pub(super) const LEASE_IMAGE_LABEL: &str = "nodelet.dev/image";

/// Protects what is half done from containerd's collector.
#[derive(Debug, Clone)]
pub(super) struct Lease {
    containerd: Containerd,
    id: String,
}

impl Lease {
    /// Takes the lease, or takes it up again.
    pub(super) async fn ensure(containerd: &Containerd, id: &str, reference: &str) -> Result<Self, Status> {
        let expire = jiff::Timestamp::now().saturating_add(LEASE_LIFE).unwrap_or(jiff::Timestamp::MAX);
        let labels = HashMap::from([
            ("containerd.io/gc.expire".to_owned(), format!("{expire:.0}")),
            (LEASE_IMAGE_LABEL.to_owned(), reference.to_owned()),
        ]);
        let request = containerd.request(CreateRequest { id: id.to_owned(), labels });
        match containerd.leases().create(request).await {
            Ok(_) => {}
            Err(status) if is_already_exists(&status) => {}
            Err(status) => return Err(status),
        }
        Ok(Self { containerd: containerd.clone(), id: id.to_owned() })
    }

    /// The connection.
    pub(super) fn containerd(&self) -> &Containerd {
        &self.containerd
    }

    /// `message` as a request whose effects the lease protects.
    pub(super) fn request<T>(&self, message: T) -> tonic::Request<T> {
        self.containerd.leased(message, &self.id)
    }

    /// Puts a blob under the lease, whether it is there already or not.
    pub(super) async fn hold_blob(&self, digest: &Digest) -> Result<(), Status> {
        self.hold("content", digest.as_str()).await
    }

    /// Puts a snapshot under the lease, whether it is there already or not.
    pub(super) async fn hold_snapshot(&self, key: &str) -> Result<(), Status> {
        let kind = format!("snapshots/{}", self.containerd.snapshotter());
        self.hold(&kind, key).await
    }

    async fn hold(&self, kind: &str, id: &str) -> Result<(), Status> {
        let resource = Some(Resource { id: id.to_owned(), r#type: kind.to_owned() });
        let request = self.containerd.request(AddResourceRequest { id: self.id.clone(), resource });
        match self.containerd.leases().add_resource(request).await {
            Ok(_) => Ok(()),
            Err(status) if is_already_exists(&status) => Ok(()),
            Err(status) => Err(status),
        }
    }

    /// What the lease holds: kind and id.
    pub(super) async fn resources(&self) -> Result<Vec<(String, String)>, Status> {
        let request = self.containerd.request(ListResourcesRequest { id: self.id.clone() });
        let answer = absent_ok(self.containerd.leases().list_resources(request).await)?;
        Ok(answer.map(|a| a.resources).unwrap_or_default().into_iter().map(|r| (r.r#type, r.id)).collect())
    }

    /// Gives free what nothing else refers to; with `sync`, before this returns.
    pub(super) async fn release(self, sync: bool) -> Result<(), Status> {
        release(&self.containerd, &self.id, sync).await
    }
}

/// Ends the lease of that id; absence is fine.
pub(super) async fn release(containerd: &Containerd, id: &str, sync: bool) -> Result<(), Status> {
    let request = containerd.request(DeleteRequest { id: id.to_owned(), sync });
    absent_ok(containerd.leases().delete(request).await).map(drop)
}

/// The name of the unfinished blob in the store, the same for every attempt and every image.
pub(super) fn ingest_name(digest: &Digest) -> String {
    format!("layer-{digest}")
}

/// What opening a blob for writing found.
pub(super) enum Opened {
    /// It is complete already.
    Present,
    /// It can be written, from [`Ingest::offset`] on.
    Writing(Box<Ingest>),
}

/// A blob being written. Dropping it keeps what is there for the next one.
#[derive(Debug)]
pub(super) struct Ingest {
    requests: mpsc::Sender<WriteContentRequest>,
    replies: Streaming<WriteContentResponse>,
    blob: Descriptor,
    offset: u64,
    /// What containerd said it has.
    written: u64,
}

impl Ingest {
    /// Opens the blob for writing, waiting for another writer to let go.
    pub(super) async fn open(lease: &Lease, blob: &Descriptor) -> Result<Opened, Status> {
        let deadline = tokio::time::Instant::now() + LOCK_PATIENCE;
        let mut pause = Duration::from_millis(20);
        loop {
            match Self::try_open(lease, blob).await {
                Err(status) if is_locked(&status) && tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_millis(500));
                }
                Err(status) if is_already_exists(&status) => return Ok(Opened::Present),
                other => return other,
            }
        }
    }

    async fn try_open(lease: &Lease, blob: &Descriptor) -> Result<Opened, Status> {
        // One message under way is enough to keep containerd busy, and bounds our memory.
        let (requests, queue) = mpsc::channel(1);
        let first = WriteContentRequest {
            action: WriteAction::Stat as i32,
            r#ref: ingest_name(&blob.digest),
            total: blob.size as i64,
            expected: blob.digest.to_string(),
            ..Default::default()
        };
        // containerd answers the call only after the first message, so that must be in the queue before.
        requests.try_send(first).map_err(|_| Status::internal("a new queue takes one message"))?;
        let replies = lease.containerd().content().write(lease.request(ReceiverStream::new(queue))).await?;
        let mut replies = replies.into_inner();
        let Some(status) = replies.message().await? else {
            return Err(Status::aborted("containerd ended the write without an answer"));
        };
        let offset = u64::try_from(status.offset).unwrap_or_default();
        let ingest = Self { requests, replies, blob: blob.clone(), offset, written: offset };
        Ok(Opened::Writing(Box::new(ingest)))
    }

    /// Bytes that are in the store already.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Appends bytes.
    pub(super) async fn write(&mut self, mut data: Bytes) -> Result<(), Status> {
        while !data.is_empty() {
            let part = data.split_to(data.len().min(MESSAGE));
            let length = part.len() as u64;
            let request = WriteContentRequest {
                action: WriteAction::Write as i32,
                offset: self.offset as i64,
                data: part.into(),
                ..Default::default()
            };
            self.send(request).await?;
            self.offset += length;
        }
        Ok(())
    }

    /// Waits until containerd has written everything. Without this, dropping loses the last messages.
    pub(super) async fn settle(&mut self) -> Result<(), Status> {
        while self.written < self.offset {
            let reply = self.replies.message().await?;
            note(&mut self.written, reply)?;
        }
        Ok(())
    }

    /// Finishes the blob: containerd checks length and digest. Labels of a blob that somebody else finished
    /// meanwhile are not set; see [`label`].
    pub(super) async fn commit(mut self, labels: HashMap<String, String>) -> Result<(), Status> {
        let request = WriteContentRequest {
            action: WriteAction::Commit as i32,
            offset: self.offset as i64,
            total: self.blob.size as i64,
            expected: self.blob.digest.to_string(),
            labels,
            ..Default::default()
        };
        let committed = async {
            self.send(request).await?;
            loop {
                match self.replies.message().await? {
                    None => return Err(Status::aborted("containerd ended the write before it was committed")),
                    Some(reply) if reply.action == WriteAction::Commit as i32 => return Ok(()),
                    Some(_) => {}
                }
            }
        }
        .await;
        match committed {
            Err(status) if is_already_exists(&status) => Ok(()),
            other => other,
        }
    }

    /// Sends one message, reading the answers to earlier ones meanwhile: containerd stops reading when they pile up.
    async fn send(&mut self, request: WriteContentRequest) -> Result<(), Status> {
        loop {
            // Both arms are cancel-safe: a permit not taken and a message not read stay where they are.
            let permit = tokio::select! {
                biased;
                reply = self.replies.message() => Err(reply?),
                permit = self.requests.reserve() => Ok(permit),
            };
            match permit {
                Err(reply) => note(&mut self.written, reply)?,
                Ok(Ok(permit)) => {
                    permit.send(request);
                    return Ok(());
                }
                // The stream is over, and the reason is in the answers.
                Ok(Err(_)) => {
                    let reply = self.replies.message().await?;
                    note(&mut self.written, reply)?;
                }
            }
        }
    }
}

fn note(written: &mut u64, reply: Option<WriteContentResponse>) -> Result<(), Status> {
    let Some(reply) = reply else { return Err(Status::aborted("containerd ended the write")) };
    *written = (*written).max(u64::try_from(reply.offset).unwrap_or_default());
    Ok(())
}

/// Drops what is there of an unfinished blob; absence is fine.
pub(super) async fn abort(containerd: &Containerd, digest: &Digest) -> Result<(), Status> {
    let request = containerd.request(AbortRequest { r#ref: ingest_name(digest) });
    absent_ok(containerd.content().abort(request).await).map(drop)
}

/// Writes a small document in one go, and sees to it that it has the labels and is held by the lease.
pub(super) async fn put_document(
    lease: &Lease,
    document: &Descriptor,
    bytes: &[u8],
    labels: HashMap<String, String>,
) -> Result<(), Status> {
    lease.hold_blob(&document.digest).await?;
    match Ingest::open(lease, document).await? {
        Opened::Present => {}
        Opened::Writing(mut ingest) => {
            // What an earlier attempt left is at least as long as we could tell; the rest follows it.
            let from = usize::try_from(ingest.offset()).unwrap_or(usize::MAX).min(bytes.len());
            ingest.write(Bytes::copy_from_slice(&bytes[from..])).await?;
            if let Err(status) = ingest.commit(labels.clone()).await {
                // Left-overs of a broken write would fail for ever.
                let _ = abort(lease.containerd(), &document.digest).await;
                return Err(status);
            }
        }
    }
    label(lease.containerd(), &document.digest, labels).await
}

/// Sets labels on a blob, keeping all others. Labels that are there already cost no write.
pub(super) async fn label(
    containerd: &Containerd,
    digest: &Digest,
    labels: HashMap<String, String>,
) -> Result<(), Status> {
    let known = match stored::info(containerd, digest).await {
        Ok(info) => info.map(|i| i.labels).unwrap_or_default(),
        Err(stored::Error::Containerd { source, .. }) => return Err(source),
        Err(stored::Error::Invalid { .. }) => HashMap::new(),
    };
    let labels: HashMap<String, String> = labels.into_iter().filter(|(k, v)| known.get(k) != Some(v)).collect();
    if labels.is_empty() { Ok(()) } else { add_labels(containerd, digest, labels).await }
}

/// The same without a look at those that are there.
pub(super) async fn add_labels(
    containerd: &Containerd,
    digest: &Digest,
    labels: HashMap<String, String>,
) -> Result<(), Status> {
    let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
    let request = containerd.request(UpdateRequest {
        info: Some(Info { digest: digest.to_string(), labels, ..Default::default() }),
        update_mask: Some(prost_types::FieldMask { paths }),
    });
    containerd.content().update(request).await.map(drop)
}

/// Another writer has the blob open.
fn is_locked(status: &Status) -> bool {
    status.code() == Code::Unavailable && status.message().contains("locked")
}

/// containerd found another length or digest than expected: what came is not what was asked for.
pub(super) fn is_corrupt(status: &Status) -> bool {
    matches!(status.code(), Code::FailedPrecondition | Code::InvalidArgument | Code::Unknown | Code::OutOfRange)
        && status.message().contains("unexpected commit")
}
