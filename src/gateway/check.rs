//! What makes a request unacceptable whatever its route, and what makes it canonical: before routing, once per request.

use http::header::{ALLOW, EXPECT};
use http::{HeaderValue, Method, Version, request};

use crate::error::{Reason, Refusal};
use crate::gateway::handle::{ALL_METHODS, Context};
use crate::gateway::snapshot::Snapshot;
use crate::http::headers::remove_hop_by_hop;
use crate::http::target::{TargetForm, canonical, check_framing, check_target};
use crate::http::text::Text;
use crate::http::websocket::{Upgrade, inspect_request};
use crate::http::{Exchange, grpc, grpc_web};

fn bad(detail: &'static str) -> Box<Refusal> {
    Refusal::new(Reason::BadRequest, detail).closing()
}

/// Everything that makes a request unacceptable whatever its route; makes host and path canonical and takes away what belongs
/// to this hop or to the gateway alone.
pub(super) fn check(ex: &mut Exchange, cx: &mut Context<'_>, head: &mut request::Parts) -> Result<(), Box<Refusal>> {
    check_head(ex, cx, head).inspect_err(|_| {
        // Whatever was found first, a call is answered as one.
        recognise_grpc(ex, cx, head);
    })
}

fn check_head(ex: &mut Exchange, cx: &mut Context<'_>, head: &mut request::Parts) -> Result<(), Box<Refusal>> {
    let snapshot = cx.snapshot;
    check_size(snapshot, head)?;
    let seen = cx.seen;
    let chunked = seen.transfer_encoding();
    if head.version < Version::HTTP_2 && (chunked || seen.content_length()) {
        check_framing(head.version, &head.headers).map_err(bad)?;
    }
    let protocol = head.extensions.get::<h2::ext::Protocol>().map(h2::ext::Protocol::as_str);
    if (head.method == Method::CONNECT && protocol.is_none()) || head.method == Method::TRACE {
        return Err(Refusal::new(Reason::MethodNotAllowed, "The gateway does not take this method.").header(ALLOW, ALL_METHODS).closing());
    }
    let upgrade = match protocol {
        None if !seen.upgrade() => Upgrade::None,
        _ => inspect_request(&head.method, head.version, &head.headers, protocol, cx.incoming.is_some() && protocol.is_none()),
    };
    match upgrade {
        Upgrade::None => {}
        Upgrade::Invalid(detail) => return Err(bad(detail)),
        Upgrade::OtherConnect => {
            return Err(Refusal::new(Reason::MethodNotAllowed, "The gateway tunnels WebSockets only.").header(ALLOW, ALL_METHODS));
        }
        Upgrade::WebSocket(websocket) => {
            if let Some(upgrading) = cx.upgrading.take() {
                cx.extended = websocket.extended;
                cx.websocket = Some((websocket, upgrading));
                cx.incoming = None;
            }
        }
    }
    let form = if cx.websocket.is_some() { TargetForm::Origin } else { check_target(&head.method, &head.uri).map_err(bad)? };
    ex.host = cx.link.connection().host(head).map_err(bad)?;
    if head.uri.authority().is_some()
        && let Some(entry) = cx.pending.get().and_then(|finish| finish.entry.as_mut())
    {
        // HTTP/2 has no `Host`, and an absolute target replaces it.
        entry.host = ex.host.authority.as_ref().map(Text::from);
    }
    cx.expects_continue = seen.expect() && head.headers.remove(EXPECT).is_some();
    let hop = remove_hop_by_hop(&mut head.headers, seen);
    cx.te_trailers = hop.te_trailers || head.version == Version::HTTP_2;
    if cx.websocket.as_ref().is_some_and(|(websocket, _)| !websocket.extended) {
        // Stays visible for header conditions of routes.
        head.headers.insert(http::header::UPGRADE, HeaderValue::from_static("websocket"));
    }
    snapshot.protected.remove(&mut head.headers);
    if form != TargetForm::Asterisk
        && let Some(target) = canonical(&ex.target, snapshot.encoded_slash).map_err(bad)?
    {
        ex.target = target;
    }
    check_grpc(ex, cx, head)?;
    if hop.te_trailers {
        head.headers.insert(http::header::TE, HeaderValue::from_static("trailers"));
    }
    Ok(())
}

/// `false`: gRPC on HTTP/1, which cannot be answered as a call.
fn recognise_grpc(ex: &Exchange, cx: &mut Context<'_>, head: &request::Parts) -> bool {
    if ex.method != Method::POST {
        return true;
    }
    cx.grpc_web = grpc_web::Call::recognise(&head.headers);
    let is_grpc = cx.grpc_web.is_none() && grpc::is_grpc(&head.headers);
    cx.grpc = is_grpc && head.version >= Version::HTTP_2;
    if (cx.grpc || cx.grpc_web.is_some())
        && let Some(finish) = cx.pending.get()
    {
        finish.grpc = true;
    }
    cx.grpc || !is_grpc
}

fn check_grpc(ex: &Exchange, cx: &mut Context<'_>, head: &request::Parts) -> Result<(), Box<Refusal>> {
    if !recognise_grpc(ex, cx, head) {
        return Err(bad("gRPC needs HTTP/2."));
    }
    if cx.grpc { grpc::timeout(&head.headers).map(|_| ()).map_err(|_| bad("grpc-timeout cannot be read.")) } else { Ok(()) }
}

/// Two spaces, the version and two line ends: what an HTTP/1 head has beside method, target and fields.
const START_LINE: usize = 14;

/// 414 and 431 with a body, before the parser's own limit, which is about twice as large.
fn check_size(snapshot: &Snapshot, head: &request::Parts) -> Result<(), Box<Refusal>> {
    let target = head.uri.path_and_query().map_or(0, |target| target.as_str().len());
    if target > snapshot.max_header_size {
        return Err(Refusal::new(Reason::UriTooLong, "The request target is longer than this gateway allows.").closing());
    }
    let fields: usize = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if head.headers.len() > snapshot.max_headers || head.method.as_str().len() + target + fields + START_LINE > snapshot.max_header_size {
        return Err(Refusal::new(Reason::HeadersTooLarge, "The request head is larger than this gateway allows.").closing());
    }
    Ok(())
}
