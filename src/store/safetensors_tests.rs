use super::*;

fn tensor(name: &str, dtype: Dtype, shape: &[usize]) -> Tensor {
    let length = Tensor::byte_len(dtype, shape).unwrap();
    let bytes = (0..length).map(|i| ((i * 37 + name.len()) % 256) as u8).collect();
    Tensor { name: name.into(), dtype, shape: shape.into(), bytes }
}

fn mixed() -> Vec<Tensor> {
    vec![
        tensor("wte", Dtype::BF16, &[3, 5]),
        tensor("adam_m/wte", Dtype::F32, &[3, 5]),
        tensor("train/step", Dtype::U64, &[]),
        tensor("guard/loss_window", Dtype::F64, &[0]),
        tensor("a \"quoted\" name é", Dtype::BF16, &[1]),
        tensor("ids", Dtype::U32, &[2, 1, 2]),
        tensor("offsets", Dtype::I64, &[2]),
    ]
}

fn sorted(mut tensors: Vec<Tensor>) -> Vec<Tensor> {
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    tensors
}

fn written(tensors: &[Tensor], metadata: &BTreeMap<String, String>) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let length = write(&path, tensors, metadata).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), length);
    (folder, path)
}

#[test]
fn tensors_read_back_whatever_their_order() {
    for tensors in [mixed(), sorted(mixed()), vec![]] {
        let (_folder, path) = written(&tensors, &BTreeMap::new());
        assert_eq!(read(&path).unwrap(), sorted(tensors));
    }
}

#[test]
fn the_bytes_do_not_depend_on_the_order_given() {
    let metadata = [("z".to_owned(), "1".to_owned()), ("a".to_owned(), "2".to_owned())].into();
    let bytes = |tensors: &[Tensor]| {
        let (_folder, path) = written(tensors, &metadata);
        std::fs::read(path).unwrap()
    };
    assert_eq!(bytes(&mixed()), bytes(&sorted(mixed())));
}

#[test]
fn the_file_is_the_documented_bytes() {
    let (_folder, path) =
        written(&[tensor("b", Dtype::BF16, &[1]), tensor("a", Dtype::F32, &[1, 1])], &BTreeMap::new());
    let header = concat!(
        r#"{"a":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]},"#,
        r#""b":{"dtype":"BF16","shape":[1],"data_offsets":[4,6]}}"#
    );
    let padded = format!("{header:<width$}", width = header.len().next_multiple_of(8));
    let data = [1, 38, 75, 112, 1, 38];
    assert_eq!(
        std::fs::read(path).unwrap(),
        [&(padded.len() as u64).to_le_bytes(), padded.as_bytes(), &data].concat()
    );
}

#[test]
fn the_safetensors_library_reads_our_files_aligned() {
    let metadata: BTreeMap<_, _> = [("format".to_owned(), "pt".to_owned())].into();
    let (_folder, path) = written(&mixed(), &metadata);
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.len(), mixed().len());
    for ours in mixed() {
        let theirs = file.tensor(&ours.name).unwrap();
        assert_eq!(
            (theirs.dtype().to_string().as_str(), theirs.shape(), theirs.data()),
            (ours.dtype.name(), &ours.shape[..], &ours.bytes[..])
        );
        assert_eq!(
            (theirs.data().as_ptr() as usize - bytes.as_ptr() as usize) % ours.dtype.size(),
            0,
            "{} is aligned",
            ours.name
        );
    }
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt");
}

#[test]
fn we_read_files_of_the_safetensors_library() {
    let tensors = sorted(mixed());
    let views = tensors.iter().map(|t| {
        let dtype = serde_json::from_value(serde_json::json!(t.dtype.name())).unwrap();
        (t.name.clone(), safetensors::tensor::TensorView::new(dtype, t.shape.clone(), &t.bytes).unwrap())
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("theirs.safetensors");
    std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    assert_eq!(read(&path).unwrap(), tensors);
}

#[test]
fn tensors_that_cannot_be_stored_are_named() {
    let short = Tensor { bytes: vec![0; 59], ..tensor("wte", Dtype::F32, &[3, 5]) };
    let overflow = Tensor { shape: vec![usize::MAX, 2], ..tensor("huge", Dtype::F32, &[0]) };
    let twice =
        vec![tensor("wte", Dtype::F32, &[1]), tensor("a", Dtype::F32, &[1]), tensor("wte", Dtype::F32, &[1])];
    for (tensors, name) in [
        (vec![short], "wte"),
        (vec![overflow], "huge"),
        (twice, "wte"),
        (vec![tensor("__metadata__", Dtype::F32, &[])], "__metadata__"),
    ] {
        match Layout::new(&tensors, &BTreeMap::new()) {
            Err(StoreError::BadTensor { name: found, .. }) => assert_eq!(found, name),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn every_fault_of_a_file_has_its_message() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.safetensors");
    let file = |header: &str, data: usize| {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; data]].concat()
    };
    let cases: [(Vec<u8>, &str); 11] = [
        (vec![], "0 bytes, expected at least 8"),
        (vec![1, 0, 0], "3 bytes, expected at least 8"),
        (u64::MAX.to_le_bytes().to_vec(), "claims 18446744073709551615 bytes, but 0 follow"),
        (file("{", 0), "EOF while parsing"),
        (file("{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4), "data_offsets"),
        (file("{\"a\":{\"dtype\":\"F33\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4), "F33"),
        (
            file("{\"a\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4),
            "type F16, which no state holds",
        ),
        (
            file("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4),
            "tensor `a` has 4 bytes, which do not fill F32 [2]",
        ),
        (
            file("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8),
            "tensor `a` has the offsets 4 to 8, expected to start at 0",
        ),
        (file("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 3), "cut short"),
        (file("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 5), "behind its end"),
    ];
    for (bytes, expected) in cases {
        std::fs::write(&path, &bytes).unwrap();
        let message = read(&path).unwrap_err().to_string();
        assert!(
            message.contains(expected) && message.contains("bad.safetensors"),
            "`{message}` should contain `{expected}`"
        );
    }
    assert!(matches!(read(&folder.path().join("none")), Err(StoreError::Missing { .. })));
}

#[test]
fn the_first_number_that_is_not_finite_is_found_in_every_type_of_float() {
    let f32s: Vec<u8> = [1.0, -2.0, f32::NAN, f32::INFINITY].iter().flat_map(|x| x.to_le_bytes()).collect();
    assert_eq!(first_not_finite(Dtype::F32, &f32s).map(|(at, _)| at), Some(2));
    assert_eq!(first_not_finite(Dtype::F32, &f32s[..8]), None);
    let f64s: Vec<u8> = [f64::MAX, f64::NEG_INFINITY].iter().flat_map(|x| x.to_le_bytes()).collect();
    assert_eq!(first_not_finite(Dtype::F64, &f64s), Some((1, f64::NEG_INFINITY)));
    // 1.0, the largest finite number, infinity.
    let bf16s: Vec<u8> = [0x3f80u16, 0x7f7f, 0x7f80].iter().flat_map(|x| x.to_le_bytes()).collect();
    assert_eq!(first_not_finite(Dtype::BF16, &bf16s), Some((2, f64::INFINITY)));
    assert_eq!(first_not_finite(Dtype::U64, &[0xff; 16]), None);
}

#[test]
fn a_tensor_larger_than_memory_is_refused_by_its_name() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let says = "tensor `a` in `";
    let bytes = "has 1125899906842624 bytes, and there is not so much memory";
    let info = Info { name: "a".into(), dtype: Dtype::F32, shape: vec![1 << 48], bytes: 1 << 50 };
    let (path, opened, header) = (file.path().to_owned(), file.reopen().unwrap(), Vec::new());
    let mut reader = Reader { path, file: opened, header, infos: vec![info].into_iter(), at: 0 };
    let refused = reader.next_tensor().unwrap_err().to_string();
    assert!(refused.starts_with(says) && refused.contains(bytes), "{refused}");
    // The same of another program's file.
    let json = format!(
        "{{\"a\":{{\"dtype\":\"F32\",\"shape\":[{}],\"data_offsets\":[0,{}]}}}}",
        1u64 << 48,
        1u64 << 50
    );
    let header = [&(json.len() as u64).to_le_bytes(), json.as_bytes()].concat();
    let length = header.len() as u64 + (1 << 50);
    let floats = floats_behind(file.path(), io::empty(), &header, length, |_| true);
    let refused = floats.map(|floats| floats.others).unwrap_err().to_string();
    assert!(refused.starts_with(says) && refused.contains(bytes), "{refused}");
}
