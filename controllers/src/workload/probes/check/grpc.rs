//! The call `grpc.health.v1.Health/Check`, by hand: one message of one field each way.

use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::net::TcpStream;

use crate::context::chain;

/// The most that is read of an answer.
const LIMIT: usize = 4096;
/// `HealthCheckResponse.status`, `SERVING`: field 1, a varint, 1.
const SERVING: [u8; 2] = [0x08, 1];

/// Asks whether `service` (empty: the server as a whole) serves.
pub(super) async fn health(stream: TcpStream, service: &str) -> Result<(), String> {
    let (sender, connection) = h2::client::handshake(stream).await.map_err(|error| chain(&error))?;
    let mut exchange = std::pin::pin!(exchange(sender, service));
    tokio::select! {
        result = &mut exchange => result,
        ended = connection => match ended {
            Ok(()) => exchange.await,
            Err(error) => Err(chain(&error)),
        },
    }
}

async fn exchange(sender: h2::client::SendRequest<Bytes>, service: &str) -> Result<(), String> {
    let mut sender = sender.ready().await.map_err(|error| chain(&error))?;
    let request = hyper::Request::post("http://localhost/grpc.health.v1.Health/Check")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "nodelet-probe")
        .body(())
        .map_err(|error| error.to_string())?;
    let (response, mut body) = sender.send_request(request, false).map_err(|error| chain(&error))?;
    body.send_data(message(service)?, true).map_err(|error| chain(&error))?;
    let (head, mut body) = response.await.map_err(|error| chain(&error))?.into_parts();
    if head.status != hyper::StatusCode::OK {
        return Err(format!("status {}", head.status));
    }
    let status = |headers: &hyper::HeaderMap| {
        headers.get("grpc-status").and_then(|value| value.to_str().ok()).map(str::to_owned)
    };
    let mut answer = BytesMut::new();
    while let Some(part) = body.data().await {
        let part = part.map_err(|error| chain(&error))?;
        let _ = body.flow_control().release_capacity(part.len());
        if answer.len() + part.len() > LIMIT {
            return Err("the answer is too long".to_owned());
        }
        answer.put(part);
    }
    let trailers = body.trailers().await.map_err(|error| chain(&error))?;
    let code = trailers.as_ref().and_then(status).or_else(|| status(&head.headers));
    match code.as_deref() {
        Some("0") => {}
        Some(code) => return Err(format!("gRPC status {code}")),
        None => return Err("the answer has no gRPC status".to_owned()),
    }
    // A flag, four bytes of length, the message; a field of value 0 is left out.
    match answer.get(5..) {
        Some(message) if message.starts_with(&SERVING) => Ok(()),
        Some(_) => Err("not serving".to_owned()),
        None => Err("the answer is empty".to_owned()),
    }
}

/// `HealthCheckRequest{service}` with gRPC's five bytes before it.
fn message(service: &str) -> Result<Bytes, String> {
    // The schema allows 253 bytes; their length fits into a varint of two.
    let length = u16::try_from(service.len()).ok().filter(|length| *length < 1 << 14).ok_or("the name is too long")?;
    let mut field = BytesMut::new();
    if length > 0 {
        field.put_u8(0x0a);
        if length < 128 {
            field.put_u8(length.to_le_bytes()[0]);
        } else {
            field.put_u8((length & 0x7f | 0x80).to_le_bytes()[0]);
            field.put_u8((length >> 7).to_le_bytes()[0]);
        }
        field.put(service.as_bytes());
    }
    let mut all = BytesMut::new();
    all.put_u8(0);
    all.put_u32(u32::try_from(field.len()).unwrap_or(u32::MAX));
    all.put(field);
    Ok(all.freeze())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// A server that answers one call for `service` with this message and status.
    async fn ask(service: &'static str, message: &'static [u8], status: &'static str) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let mut connection = h2::server::handshake(listener.accept().await.unwrap().0).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                tokio::spawn(async move {
                    let mut body = request.into_body();
                    let mut asked = Vec::new();
                    while let Some(Ok(part)) = body.data().await {
                        asked.extend_from_slice(&part);
                    }
                    assert!(asked.ends_with(service.as_bytes()) && asked[4] as usize == asked.len() - 5);
                    let mut stream = respond.send_response(hyper::Response::new(()), false).unwrap();
                    stream.send_data(Bytes::from_static(message), false).unwrap();
                    let mut trailers = hyper::HeaderMap::new();
                    trailers.insert("grpc-status", status.parse().unwrap());
                    stream.send_trailers(trailers).unwrap();
                });
            }
        });
        let result = health(TcpStream::connect(address).await.unwrap(), service).await;
        server.abort();
        result
    }

    #[tokio::test]
    async fn only_serving_is_a_success() {
        assert_eq!(ask("", &[0, 0, 0, 0, 2, 8, 1], "0").await, Ok(()));
        assert_eq!(ask("shop.Cart", &[0, 0, 0, 0, 2, 8, 1], "0").await, Ok(()));
        assert_eq!(ask("", &[0, 0, 0, 0, 2, 8, 2], "0").await.unwrap_err(), "not serving");
        assert_eq!(ask("", &[0, 0, 0, 0, 0], "0").await.unwrap_err(), "not serving");
        assert_eq!(ask("", &[], "5").await.unwrap_err(), "gRPC status 5");
    }

    #[test]
    fn long_names_have_long_lengths() {
        assert_eq!(message("").unwrap(), [0u8, 0, 0, 0, 0].as_slice());
        let long = "x".repeat(200);
        assert_eq!(message(&long).unwrap()[..8], [0, 0, 0, 0, 203, 0x0a, 0xc8, 0x01]);
    }
}
