//! gzip without compression, for a simulated server: clients that accept it must be able to decode it.

/// Returns `data` as a gzip stream (RFC 1952) of stored blocks.
#[must_use]
pub fn gzip(data: &[u8]) -> Vec<u8> {
    const MAX_BLOCK: usize = 0xffff;
    let mut stream = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
    let mut blocks = data.chunks(MAX_BLOCK).peekable();
    if blocks.peek().is_none() {
        stream.extend([1, 0, 0, 0xff, 0xff]);
    }
    while let Some(block) = blocks.next() {
        let length = u16::try_from(block.len()).unwrap_or(u16::MAX);
        stream.push(u8::from(blocks.peek().is_none()));
        stream.extend(length.to_le_bytes());
        stream.extend((!length).to_le_bytes());
        stream.extend(block);
    }
    stream.extend(crc32(data).to_le_bytes());
    stream.extend(u32::try_from(data.len()).unwrap_or(u32::MAX).to_le_bytes());
    stream
}

fn crc32(data: &[u8]) -> u32 {
    let update = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 })
    };
    !data.iter().fold(u32::MAX, update)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_is_the_one_that_python_decodes() {
        // gzip.decompress(bytes.fromhex(…)) == b"novi"
        let expected = [
            0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff, 1, 4, 0, 0xfb, 0xff, b'n', b'o', b'v', b'i', 0, 0, 0, 0, 4, 0, 0, 0,
        ];
        let stream = gzip(b"novi");
        assert_eq!(stream[..19], expected[..19]);
        assert_eq!(stream[23..], expected[23..]);
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }
}
