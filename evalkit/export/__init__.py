"""Results where people look: TensorBoard, Weights & Biases, MLflow and Parquet."""
