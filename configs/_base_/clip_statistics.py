# Mean and std of OpenAI's CLIP, 0 to 255 (timm.data.constants: OPENAI_CLIP_MEAN, OPENAI_CLIP_STD).
clip_statistics = dict(mean=[122.771, 116.746, 104.094], std=[68.501, 66.632, 70.323])
