// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! VERSION: versions and capabilities of both ends (QEMU's vfio-user.rst, `VFIO_USER_VERSION`).

use serde_json::{Map, Value};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::error::RequestError;

/// The only major version there is.
pub const MAJOR: u16 = 0;
/// The newest minor version spoken here.
pub const MINOR: u16 = 1;
/// Largest VERSION body in bytes.
const MAX_VERSION_BODY: usize = 4096;

/// What a VERSION command and its reply begin with; JSON ended by NUL may follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VersionPayload {
    /// Major version.
    pub major: u16,
    /// Minor version.
    pub minor: u16,
}

/// What one end of a vfio-user socket can take. `None`: not said, so the protocol's default holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Most descriptors in one message to this end; by default 1.
    pub max_msg_fds: Option<u64>,
    /// Most bytes that one message reads or writes; by default 1 MiB.
    pub max_data_xfer_size: Option<u64>,
    /// Sizes in bytes of the pages that can be mapped, one bit each; by default 4096.
    pub pgsizes: Option<u64>,
    /// Most mappings at a time; by default 65535.
    pub max_dma_maps: Option<u64>,
}

impl Capabilities {
    /// Names on the wire, in the order of their use to a client: what does not fit a reply is dropped from the end.
    fn fields(&self) -> [(&'static str, Option<u64>); 4] {
        [
            ("max_msg_fds", self.max_msg_fds),
            ("max_data_xfer_size", self.max_data_xfer_size),
            ("pgsizes", self.pgsizes),
            ("max_dma_maps", self.max_dma_maps),
        ]
    }

    fn from_json(capabilities: &Map<String, Value>) -> Result<Self, RequestError> {
        let number = |name| match capabilities.get(name) {
            None => Ok(None),
            Some(value) => value.as_u64().map(Some).ok_or(RequestError::Capabilities),
        };
        Ok(Self {
            max_msg_fds: number("max_msg_fds")?,
            max_data_xfer_size: number("max_data_xfer_size")?,
            pgsizes: number("pgsizes")?,
            max_dma_maps: number("max_dma_maps")?,
        })
    }

    /// The body of a VERSION message.
    pub fn encode(&self, minor: u16) -> Vec<u8> {
        let fields =
            self.fields().into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.into())));
        encode(minor, fields.collect())
    }
}

fn encode(minor: u16, capabilities: Map<String, Value>) -> Vec<u8> {
    let mut root = Map::new();
    root.insert("capabilities".to_owned(), Value::Object(capabilities));
    let mut body = VersionPayload { major: MAJOR, minor }.as_bytes().to_vec();
    body.extend(Value::Object(root).to_string().as_bytes());
    body.push(0);
    body
}

/// What the other end said in VERSION.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// Its newest minor version.
    pub minor: u16,
    /// What it can take.
    pub capabilities: Capabilities,
    /// Size of its message's body in bytes. QEMU has no room for a longer reply.
    size: usize,
}

impl Proposal {
    /// Reads the body of a VERSION message of either end.
    pub fn parse(body: &[u8]) -> Result<Self, RequestError> {
        let (VersionPayload { major, minor }, json) =
            VersionPayload::read_from_prefix(body).map_err(|_| RequestError::Capabilities)?;
        if major != MAJOR {
            return Err(RequestError::Major { major });
        }
        if body.len() > MAX_VERSION_BODY {
            return Err(RequestError::Capabilities);
        }
        let capabilities = parse_json(json)?;
        Ok(Self { minor, capabilities, size: body.len() })
    }

    /// The body of the reply with what `ours` says to the capabilities that were proposed, and no others, as far as the
    /// client has room.
    pub fn reply(&self, ours: &Capabilities) -> Vec<u8> {
        let minor = self.minor.min(MINOR);
        let mut capabilities = Map::new();
        let mut body = encode(minor, capabilities.clone());
        if body.len() > self.size {
            return VersionPayload { major: MAJOR, minor }.as_bytes().to_vec();
        }
        for ((name, proposed), (_, value)) in self.capabilities.fields().into_iter().zip(ours.fields()) {
            if let (Some(_), Some(value)) = (proposed, value) {
                capabilities.insert(name.to_owned(), value.into());
                let longer = encode(minor, capabilities.clone());
                if longer.len() > self.size {
                    break;
                }
                body = longer;
            }
        }
        body
    }
}

/// Reads what follows the versions: nothing, or a JSON object ended by NUL.
fn parse_json(json: &[u8]) -> Result<Capabilities, RequestError> {
    if json.is_empty() {
        return Ok(Capabilities::default());
    }
    let text = json.strip_suffix(&[0]).ok_or(RequestError::Capabilities)?;
    let root: Map<String, Value> = serde_json::from_slice(text).map_err(|_| RequestError::Capabilities)?;
    match root.get("capabilities") {
        None => Ok(Capabilities::default()),
        Some(Value::Object(capabilities)) => Capabilities::from_json(capabilities),
        Some(_) => Err(RequestError::Capabilities),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OURS: Capabilities = Capabilities {
        max_msg_fds: Some(16),
        max_data_xfer_size: Some(1_048_576),
        pgsizes: Some(4096),
        max_dma_maps: Some(65535),
    };

    /// What QEMU 11.1 and Cloud Hypervisor's client send.
    const QEMU: &str = r#"{"capabilities":{"pgsizes":4096,"max_msg_fds":16,"max_dma_maps":65535,"max_data_xfer_size":1048576,"migration":{"max_bitmap_size":268435456,"pgsize":4096},"write_multiple":true}}"#;
    const CLOUD_HYPERVISOR: &str =
        r#"{"capabilities":{"max_msg_fds":1,"max_data_xfer_size":1048576,"migration":{"pgsize":4096}}}"#;

    fn body(minor: u16, json: &str) -> Vec<u8> {
        [VersionPayload { major: MAJOR, minor }.as_bytes(), json.as_bytes(), &[0]].concat()
    }

    fn json(body: &[u8]) -> &str {
        std::str::from_utf8(body[4..].strip_suffix(&[0]).unwrap()).unwrap()
    }

    #[test]
    fn qemu_gets_its_minor_version_and_what_it_proposed() {
        let sent = body(0, QEMU);
        let proposal = Proposal::parse(&sent).unwrap();
        assert_eq!(proposal.capabilities, OURS);
        let reply = proposal.reply(&OURS);
        assert_eq!(Proposal::parse(&reply).unwrap().capabilities, OURS);
        assert_eq!(Proposal::parse(&reply).unwrap().minor, 0);
        assert!(reply.len() <= sent.len());
        assert!(!json(&reply).contains("write_multiple"));
    }

    #[test]
    fn cloud_hypervisor_is_told_how_many_descriptors_it_may_send() {
        let sent = body(1, CLOUD_HYPERVISOR);
        let reply = Proposal::parse(&sent).unwrap().reply(&OURS);
        assert_eq!(json(&reply), r#"{"capabilities":{"max_data_xfer_size":1048576,"max_msg_fds":16}}"#);
        assert!(reply.len() <= sent.len());
    }

    #[test]
    fn the_reply_is_never_longer_than_the_proposal() {
        let sent = body(1, r#"{"capabilities":{"max_msg_fds":1}}"#);
        let reply = Proposal::parse(&sent).unwrap().reply(&OURS);
        assert_eq!(json(&reply), r#"{"capabilities":{}}"#);
        let sent = VersionPayload { major: MAJOR, minor: 9 };
        let reply = Proposal::parse(sent.as_bytes()).unwrap().reply(&OURS);
        assert_eq!(reply, VersionPayload { major: MAJOR, minor: MINOR }.as_bytes());
    }

    #[test]
    fn what_is_not_said_is_left_to_the_defaults() {
        for json in ["{}", r#"{"capabilities":{}}"#, r#"{"capabilities":{"twin_socket":{"supported":true}}}"#]
        {
            assert_eq!(Proposal::parse(&body(0, json)).unwrap().capabilities, Capabilities::default());
        }
    }

    #[test]
    fn another_major_version_is_refused() {
        let sent = VersionPayload { major: 1, minor: 0 };
        assert_eq!(Proposal::parse(sent.as_bytes()), Err(RequestError::Major { major: 1 }));
    }

    #[test]
    fn malformed_capabilities_are_refused() {
        let good = body(0, r#"{"capabilities":{}}"#);
        let no_nul = &good[..good.len() - 1];
        let no_brace = body(0, r#"{"capabilities":{}"#);
        let two_nuls = body(0, "{}\0");
        let array = body(0, "[]");
        let no_object = body(0, r#"{"capabilities":16}"#);
        let text = body(0, r#"{"capabilities":{"max_msg_fds":"16"}}"#);
        let negative = body(0, r#"{"capabilities":{"max_msg_fds":-1}}"#);
        let deep = body(0, &"[".repeat(4000));
        let long = body(0, &format!("{{}}{}", " ".repeat(4096)));
        for sent in
            [no_nul, &no_brace, &two_nuls, &array, &no_object, &text, &negative, &deep, &long, &good[..3]]
        {
            assert_eq!(Proposal::parse(sent), Err(RequestError::Capabilities));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = Proposal::parse(&bytes).is_ok();
            let _ = Proposal::parse(&[&[0; 4], bytes.as_slice()].concat()).is_ok();
        }

        #[test]
        fn capabilities_survive_the_wire_and_the_reply_is_short(
            minor: u16,
            max_msg_fds: Option<u64>,
            max_data_xfer_size: Option<u64>,
            pgsizes: Option<u64>,
            max_dma_maps: Option<u64>,
        ) {
            let capabilities = Capabilities { max_msg_fds, max_data_xfer_size, pgsizes, max_dma_maps };
            let sent = capabilities.encode(minor);
            let proposal = Proposal::parse(&sent).unwrap();
            prop_assert_eq!(proposal.capabilities, capabilities);
            let reply = proposal.reply(&OURS);
            prop_assert!(reply.len() <= sent.len());
            prop_assert!(Proposal::parse(&reply).unwrap().minor <= minor);
        }
    }
}
